"""A template and an experiment become a script.

Templates are the scripts themselves with {{names}} in them. A line whose value is empty is left out; one whose value
is a list is repeated for each item. Values go in as they are: what a shell or YAML will read is quoted before.
"""

import math
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmkit.config.base import ConfigError, nearest
from lmkit.config.experiment import Experiment, check_mesh
from lmkit.config.sections.launch import LaunchConfig, Shape, Target, shape_of, slug
from lmkit.launch.pods import FUSE, SHARED, check_image, dollars, executed, flow, pod_values
from lmkit.redact import redact_words

FILES = {Target.slurm: "slurm.sbatch", Target.gke: "gke.yaml", Target.tpu_pod: "tpu_pod.sh"}
STATUSES = {"asked": 75, "interrupted": 130}  # of lmkit.train; docs/hosts.md
FOR_GOOD = {Target.slurm: "1 | 2", Target.gke: "1, 2", Target.tpu_pod: "1 | 2"}  # a bug, a mistake
PORT = 8476  # jax's own choice

Values = Mapping[str, str | int | Sequence[str]]


def render(experiment: Experiment, words: Sequence[str]) -> str:
    """The script that trains an experiment; `words` are the command line it was made from. Servers: serving.py.

    Raises ConfigError where the target cannot run it: a mesh that does not fit, storage or an image that is missing.
    """
    launch = experiment.launch
    shape = check_fits(experiment)
    title = title_of(words)
    words = command_words(words)
    template = template_of(launch, FILES[launch.target])
    values = common_values(experiment, title, job_name(experiment))
    more = {Target.slurm: _slurm, Target.gke: _gke, Target.tpu_pod: _tpu_pod}[launch.target]
    return fill(template.read_text(), values | more(experiment, shape, words), str(template))


def title_of(words: Sequence[str]) -> str:
    """The command line that a script was made from, without its secrets."""
    return shlex.join(redact_words(["python", "-m", "lmkit.launch", *words]))


def template_of(launch: LaunchConfig, name: str) -> Path:
    """launch.template, or lmkit's own of this name. Raises ConfigError where there is none."""
    template = Path(launch.template or templates_dir() / name).expanduser()
    if not template.is_file():
        raise ConfigError(f"launch.template={launch.template}: there is no such file; leave it out for {name}")
    return template


def templates_dir() -> Path:
    """Beside this module, so that a wheel has them, too."""
    return Path(__file__).resolve().parent / "templates"


def check_fits(experiment: Experiment) -> Shape:
    """Hosts and devices; raises ConfigError where mesh, batch or model do not fit them."""
    launch, mesh = experiment.launch, experiment.mesh
    shape = shape_of(launch, experiment.run.cpu_devices)
    product = math.prod(vars(mesh.dcn).values())
    if launch.is_tpu and product != launch.slices:
        raise ConfigError(
            f"launch.slices={launch.slices}, but mesh.dcn splits over {product}: their product has to be the slices, "
            f"such as mesh.dcn.data={launch.slices}"
        )
    if shape.devices:
        try:
            check_mesh(experiment, shape.devices)
        except ConfigError as error:
            raise ConfigError(f"{shape.how} = {shape.devices} devices: {error}") from error
    return shape


def command_words(words: Sequence[str]) -> list[str]:
    """What of this verb's command line goes to train. Raises ConfigError for what no job could mean."""
    kept = []
    for word in words:
        if word in ("-m", "--multirun"):
            raise ConfigError(
                "a sweep is sent off by train itself: python -m lmkit.train --multirun "
                "hydra/launcher=submitit_slurm ... (docs/launch.md); leave --multirun out here"
            )
        if not word.isprintable():
            raise ConfigError(f"{word!r} has letters that do not print: put the value into an experiment file")
        if not re.match(r"[+~]*launch[.=]", word):
            kept.append(word)
    return kept


def fill(text: str, values: Values, source: str) -> str:
    """A template with its values. Raises ConfigError for a name that there is no value for."""
    lines = []
    for line in text.splitlines():
        names = re.findall(r"{{(\w+)}}", line)
        for name in names:
            if name not in values:
                raise ConfigError(f"{source}: there is no {{{{{name}}}}}.{nearest(name, values)}")
        found = [values[name] for name in names]
        many = next((v for v in found if isinstance(v, list)), [""])
        if any(value in ("", [], None) for value in found):
            continue
        for item in many:
            shown = {name: item if isinstance(values[name], list) else str(values[name]) for name in names}
            lines.append(re.sub(r"{{(\w+)}}", lambda match, shown=shown: shown[match[1]], line).rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def common_values(experiment: Experiment, title: str, name: str) -> dict[str, str | int | list[str]]:
    """What every template may name."""
    launch = experiment.launch
    return {
        "title": title,
        "name": name,
        "grace_sec": launch.grace_sec,
        "max_restarts": launch.max_restarts,
        "options": list(launch.options),
        "setup": list(launch.setup),
        **STATUSES,
        "for_good": FOR_GOOD[launch.target],
    }


def job_name(experiment: Experiment) -> str:
    """launch.name, or one of the run and, where run.dir follows from it, of the time."""
    launch = experiment.launch
    if launch.name or launch.target is Target.slurm:
        return launch.name or slug(experiment.run.name)
    return f"{slug(experiment.run.name)[:26].strip('-')}-{time.strftime('%y%m%d-%H%M%S')}"


def command_lines(experiment: Experiment, verb: str, words: Sequence[str]) -> list[str]:
    """A verb's command, a line a word, each but the last with its backslash; the words are as a shell reads them."""
    launch = experiment.launch
    python = launch.python or (sys.executable if launch.target is Target.slurm else "python")
    parts = [f"{shlex.quote(python)} -m lmkit.{verb}", *words]
    return [f"{part} \\" for part in parts[:-1]] + parts[-1:]


def _command(experiment: Experiment, words: list[str], run_dir: str) -> list[str]:
    """The lines of train's command. `run_dir`: as the shell reads it."""
    where = [] if _has_dir(words) else [f"run.dir={run_dir}"]
    return command_lines(experiment, "train", [*map(shlex.quote, words), *where])


def _has_dir(words: Sequence[str]) -> bool:
    """Whether the command line says where the run is; else launch does, once for all hosts and restarts."""
    return any(re.match(r"\+*run\.dir=", word) for word in words)


def _folder(experiment: Experiment) -> str:
    name = experiment.run.name
    return name if re.fullmatch(r"[\w.-]+", name) else slug(name)


def slurm_asks(launch: LaunchConfig) -> dict[str, str | int | list[str]]:
    """What every job asks of Slurm, by the names of the templates."""
    return {
        "gpus_per_node": launch.gpus_per_node or "",
        "cpus_per_node": launch.cpus_per_node or "",
        "whole_host": "" if launch.cpus_per_node else "--exclusive --mem=0",
        "time_limit_minutes": launch.time_limit_minutes or "",
        "partition": launch.partition,
        "account": launch.account,
    }


def _slurm(experiment: Experiment, shape: Shape, words: list[str]) -> dict[str, str | int | list[str]]:
    launch = experiment.launch
    run_dir = f'"runs/{_folder(experiment)}/slurm-$SLURM_JOB_ID"'
    if _has_dir(words):
        run_dir = shlex.quote(str(Path(experiment.run.dir).expanduser()))
    return {
        **slurm_asks(launch),
        "nodes": shape.nodes,
        "port": launch.port or "$((20000 + SLURM_JOB_ID % 10000))",  # jobs that share a host must not meet
        "run_dir": run_dir,
        "command": _command(experiment, words, '"$run_dir"'),
    }


def _shared_dir(experiment: Experiment, words: list[str]) -> str:
    """run.dir on what the hosts share; raises ConfigError where they share nothing."""
    launch = experiment.launch
    if _has_dir(words):
        return experiment.run.dir
    if not launch.volume:
        raise ConfigError(
            f"launch.target={launch.target.name} needs launch.volume=, storage that all hosts share and that outlives "
            f"them: gs://BUCKET, HOST:/NFS{', a claim' if launch.target is Target.gke else ''}; or give run.dir="
        )
    return f"{SHARED}/runs/{_folder(experiment)}/{job_name(experiment)}"


def _gke(experiment: Experiment, shape: Shape, words: list[str]) -> dict[str, str | int | list[str]]:
    launch = experiment.launch
    check_image(launch)
    name, volume = job_name(experiment), launch.volume
    script = [*launch.setup]
    if volume:
        script.append(f"export LMKIT_CACHE={SHARED}/cache")
    command = _command(experiment, words, _shared_dir(experiment, words))
    if not launch.is_tpu and shape.nodes > 1:  # the hosts of a TPU find each other
        first = f"{name}-host-0-0.{name}:{launch.port or PORT}"
        found = [f"hosts.coordinator={first}", f"hosts.num={shape.nodes}", 'hosts.id="$JOB_COMPLETION_INDEX"']
        command = [*command[:1], *(f"{word} \\" for word in found), *command[1:]]
    script += executed(command)
    pool = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if launch.is_tpu else {}
    return {
        "slices": launch.slices,
        "nodes_per_slice": shape.nodes // launch.slices,
        "deadline_sec": launch.time_limit_minutes * 60 or "",
        "annotations": flow(pool),
        "pod_metadata": flow({"annotations": FUSE} if volume.startswith("gs://") else {}),
        **pod_values(launch, shape),
        "script": dollars(script),
    }


def _tpu_pod(experiment: Experiment, shape: Shape, words: list[str]) -> dict[str, str | int | list[str]]:
    launch, kind = experiment.launch, experiment.launch.generation
    assert kind is not None, "shape_of has checked it"
    command = _command(experiment, words, _shared_dir(experiment, words))
    limit = (
        f"timeout --kill-after={launch.grace_sec} {launch.time_limit_minutes}m " if launch.time_limit_minutes else ""
    )
    name, spot = job_name(experiment), ["--spot"] if launch.spot else []
    nodes = [f"--node-id={name}"] if launch.slices == 1 else [f"--node-count={launch.slices}", f"--node-prefix={name}"]
    return {
        "zone": launch.zone,
        "project": launch.project,
        "accelerator": launch.accelerator,
        "runtime": launch.image or kind.runtime,
        "node_options": " ".join([*nodes, *spot]),
        "options": [shlex.quote(option) for option in launch.options],
        "ssh": "tpu-vm ssh" if launch.slices == 1 else "queued-resources ssh --node=all",
        "script": [*launch.setup, *_mount(launch.volume), limit + command[0], *(f"  {line}" for line in command[1:])],
    }


def _mount(volume: str) -> list[str]:
    """Lines that mount the shared storage on a TPU VM, once."""
    if not volume:
        return []
    if volume.startswith("gs://"):  # launch.setup may install gcsfuse before
        mount = f"gcsfuse --implicit-dirs {volume.removeprefix('gs://').strip('/')} {SHARED}"
    elif ":" in volume:
        mount = f"sudo mount -t nfs {volume} {SHARED}"
    else:
        raise ConfigError(f"launch.volume={volume} with launch.target=tpu_pod: give gs://BUCKET or HOST:/NFS")
    made = f'sudo mkdir -p {SHARED} && sudo chown "$USER" {SHARED}'
    return [f"mountpoint -q {SHARED} || {{ {made} && {mount}; }} || exit", f"export LMKIT_CACHE={SHARED}/cache"]
