"""A model as a server on a cluster: a Deployment with its Service and autoscaler, or a Slurm job."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmkit.config.arithmetic.mesh import axis_sizes
from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.config.sections.launch import Shape, Target, shape_of, slug
from lmkit.launch.pods import FUSE, SHARED, check_image, dollars, executed, flow, pod_values
from lmkit.launch.render import (
    command_lines,
    command_words,
    common_values,
    fill,
    slurm_asks,
    template_of,
    templates_dir,
    title_of,
)  # fmt: skip

FILES = {Target.slurm: "serve.sbatch", Target.gke: "serve_gke.yaml"}
SCALER = "serve_gke_scaler.yaml"
KEYS = "/etc/lmkit/keys.yaml"  # where the Secret with the keys is mounted
AWAY_SEC = 5  # after a pod is asked to stop it still gets requests for so long, until all nodes know
ENDING_SEC = 10  # after serve.drain_sec: errors to what did not finish, connections


def render_serving(experiment: Experiment, words: Sequence[str]) -> str:
    """The file that serves `init_from`; `words` are the command line it was made from.

    Raises ConfigError where the target cannot run it.
    """
    launch = experiment.launch
    if launch.target not in FILES:
        raise ConfigError(f"launch.verb=serve with launch.target={launch.target.name}: slurm or gke run servers")
    if not experiment.init_from:
        raise ConfigError("launch.verb=serve needs init_from=, the model: a run, a Hugging Face folder, hub://ORG/NAME")
    shape = _one_host(experiment)
    needed = AWAY_SEC + experiment.serve.drain_sec + ENDING_SEC
    if launch.grace_sec < needed:
        raise ConfigError(
            f"launch.grace_sec={launch.grace_sec} with serve.drain_sec={experiment.serve.drain_sec:g}: a server would "
            f"be killed while it drains; set launch.grace_sec={needed:.0f} or more"
        )
    name = server_name(experiment)
    values = common_values(experiment, title_of(words), name) | {"port": experiment.serve.port}
    more = {Target.slurm: _slurm, Target.gke: _gke}[launch.target]
    values |= more(experiment, shape, command_words(words))
    templates = [template_of(launch, FILES[launch.target])]
    if launch.target is Target.gke and launch.max_replicas:
        templates.append(templates_dir() / SCALER)
    return "".join(fill(template.read_text(), values, str(template)) for template in templates)


def _one_host(experiment: Experiment) -> Shape:
    shape = shape_of(experiment.launch, experiment.run.cpu_devices)
    if shape.nodes > 1:
        raise ConfigError(
            f"launch.verb=serve runs one host a replica, and {shape.how} has {shape.nodes}: choose one host (of a TPU "
            f"slice launch.nodes=1 where a host has all its chips), and launch.replicas for more requests"
        )
    if shape.devices:
        axis_sizes(experiment.mesh, shape.devices)
    return shape


def server_name(experiment: Experiment) -> str:
    """launch.name, or one of the model: `kubectl apply` changes the server that has the same."""
    return experiment.launch.name or slug(f"serve-{experiment.serve.name or Path(experiment.init_from).name}")


def _command(experiment: Experiment, words: Sequence[str], more: Mapping[str, str]) -> list[str]:
    """The lines of the command; with what the target needs where the words do not say it."""
    missing = [f"{key}={value}" for key, value in more.items() if not any(re.match(rf"\+*{key}=", w) for w in words)]
    return command_lines(experiment, "serve", [shlex.quote(word) for word in (*words, *missing)])


def _slurm(experiment: Experiment, shape: Shape, words: list[str]) -> dict[str, str | int | list[str]]:
    launch, serve = experiment.launch, experiment.serve
    more = {"serve.host": "0.0.0.0"} if serve.keys else {}  # without keys: this node alone, by ssh -L
    command = _command(experiment, words, more)
    return slurm_asks(launch) | {"command": [*command[:-1], f"{command[-1]} &"]}


def _gke(experiment: Experiment, shape: Shape, words: list[str]) -> dict[str, str | int | list[str]]:
    launch, serve = experiment.launch, experiment.serve
    check_image(launch)
    if not serve.port:
        raise ConfigError("serve.port=0 with launch.target=gke: a Service needs one that is known, such as 8000")
    if 0 < launch.max_replicas < launch.replicas:
        raise ConfigError(
            f"launch.max_replicas={launch.max_replicas} is below launch.replicas={launch.replicas}: raise it, or set 0 "
            f"for no autoscaler"
        )
    scheme = "HTTPS" if serve.tls_cert else "HTTP"
    scraped = {"scrape": "true", "port": str(serve.port), "path": "/metrics", "scheme": scheme.lower()}
    notes = {f"prometheus.io/{key}": value for key, value in scraped.items()} if serve.metrics else {}
    command = _command(experiment, words, {"serve.host": "0.0.0.0", "serve.keys": KEYS})
    cache = [f"export LMKIT_CACHE={SHARED}/cache"] if launch.volume else []
    own, secret = not serve.keys, f"{server_name(experiment)}-keys"  # else the keys are on the volume, or in the image
    return {
        "replicas": ""
        if launch.max_replicas
        else launch.replicas,  # else each `apply` would undo the autoscaler's work
        "min_replicas": launch.replicas,
        "max_replicas": launch.max_replicas,
        "scheme": scheme,
        "drain_sec": f"{serve.drain_sec:g}",
        "away_sec": AWAY_SEC,
        "annotations": flow(notes | (FUSE if launch.volume.startswith("gs://") else {})),
        "keys_file": f"kubectl create secret generic {secret} --from-file=keys.yaml" if own else "",
        "keys_mount": flow({"name": "keys", "mountPath": str(Path(KEYS).parent), "readOnly": True} if own else {}),
        "keys_volume": flow({"name": "keys", "secret": {"secretName": secret}} if own else {}),
        "queue": launch.waiting_per_replica,
        **pod_values(launch, shape),
        "script": dollars([*launch.setup, *cache, *executed(command)]),
    }
