"""Where an experiment is sent, and what it asks for there. What a target does not know is refused, not dropped."""

import math
import re
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import ClassVar, NamedTuple

from lmkit.config.base import ConfigError, Section, key


class Target(Enum):
    """Who runs it."""

    slurm = 0  # an sbatch script
    gke = 1  # a JobSet for Kubernetes, with GKE's names for accelerators
    tpu_pod = 2  # a script of gcloud commands that makes a TPU and runs on all its hosts


class Verb(Enum):
    """What runs there."""

    train = 0
    serve = 1


class Generation(NamedTuple):
    """What a generation of TPUs is called and how its size is counted (cloud.google.com/tpu/docs/v4, v5e, ...)."""

    accelerator: str  # of a Cloud TPU: <this>-<number>
    number_per_chip: int  # the number counts chips or cores
    devices_per_chip: int  # as jax sees them
    chips_per_host: int  # of a slice of several hosts
    chips_alone: int  # of the largest slice of one host
    runtime: str  # software of a TPU VM


TPUS = (
    Generation("v2", 2, 2, 4, 4, "tpu-ubuntu2204-base"),
    Generation("v3", 2, 2, 4, 4, "tpu-ubuntu2204-base"),
    Generation("v4", 2, 1, 4, 4, "tpu-ubuntu2204-base"),
    Generation("v5litepod", 1, 1, 4, 8, "v2-alpha-tpuv5-lite"),
    Generation("v5p", 2, 1, 4, 4, "v2-alpha-tpuv5"),
    Generation("v6e", 1, 1, 4, 8, "v2-alpha-tpuv6e"),
)
GKE_TPUS = {  # value of the node label -> jax devices a chip
    "tpu-v4-podslice": 1, "tpu-v5-lite-podslice": 1, "tpu-v5-lite-device": 1, "tpu-v5p-slice": 1, "tpu-v6e-slice": 1,
    "tpu7x": 2,
}  # fmt: skip
_WORD = re.compile(r"[\w./:@+,=-]*")  # goes into a script as it stands
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # Kubernetes adds up to 23 letters to it, of 63
_ONLY = {  # keys that not every target has
    "gpus_per_node": (Target.slurm, Target.gke), "cpus_per_node": (Target.slurm,), "partition": (Target.slurm,),
    "account": (Target.slurm,), "accelerator": (Target.gke, Target.tpu_pod), "topology": (Target.gke,),
    "slices": (Target.gke, Target.tpu_pod), "image": (Target.gke, Target.tpu_pod),
    "volume": (Target.gke, Target.tpu_pod), "zone": (Target.tpu_pod,), "project": (Target.tpu_pod,),
    "spot": (Target.gke, Target.tpu_pod), "options": (Target.slurm, Target.tpu_pod),
    "replicas": (Target.gke,), "max_replicas": (Target.gke,), "waiting_per_replica": (Target.gke,),
}  # fmt: skip


@dataclass
class LaunchConfig(Section):
    """A job on a cluster."""

    section: ClassVar[str] = "launch"
    changes_results: ClassVar[bool] = False

    target: Target = key(Target.slurm, "who runs it; on this verb's command line also target=")
    verb: Verb = key(Verb.train, "what runs there: train, or serve (slurm and gke); on the command line also verb=")
    name: str = key("", "name of the job; '' = of the run and the time. On gke and tpu_pod the same name resumes")
    nodes: int = key(0, "hosts, one process each; 0 = one, or those that the TPU has", at_least=0)
    gpus_per_node: int = key(0, "GPUs of a host; all are seen by its one process", at_least=0)
    cpus_per_node: int = key(0, "slurm: cores of a host; 0 = the whole host, with its memory", at_least=0)
    accelerator: str = key("", "gke: as nodes are labelled (tpu-v6e-slice, nvidia-h100-80gb); tpu_pod: v6e-16 ...")
    topology: str = key("", "gke: chips of a TPU slice, such as 4x4")
    slices: int = key(1, "TPU slices, joined by the data-centre network; mesh.dcn is split over them", at_least=1)
    time_limit_minutes: int = key(0, "the job is asked to stop when so long has gone; 0 = no limit here", at_least=0)
    grace_sec: int = key(120, "from being asked to stop to being killed: a save must fit", at_least=1)
    max_restarts: int = key(3, "times a job that broke off starts again; one asked to stop always does", at_least=0)
    partition: str = key("", "slurm: partition; '' = the cluster's own choice")
    account: str = key("", "slurm: account that pays")
    image: str = key("", "gke: container image with lmkit in it; tpu_pod: software version, '' = the TPU's own")
    volume: str = key("", "gke, tpu_pod: storage that all hosts share, for run.dir: gs://BUCKET, HOST:/NFS or a claim")
    zone: str = key("", "tpu_pod: zone of the TPU")
    project: str = key("", "tpu_pod: project that pays; '' = gcloud's own")
    spot: bool = key(False, "gke, tpu_pod: capacity that may be taken away")
    replicas: int = key(1, "gke with verb=serve: pods that serve; with max_replicas the fewest", at_least=1)
    max_replicas: int = key(0, "gke with verb=serve: the most that an autoscaler may start; 0 = none", at_least=0)
    waiting_per_replica: int = key(
        4, "gke with verb=serve: requests that may wait a pod before another is started", at_least=1
    )
    python: str = key("", "interpreter there; '' = on Slurm the one that runs this, else python")
    setup: list[str] = key([], "lines of shell before the run, on every host: modules, variables, pip install")
    options: list[str] = key([], "more options: of sbatch, or of gcloud ... queued-resources create")
    port: int = key(0, "of the first host, for jax; 0 = 8476, on Slurm one made from the job's number", at_least=0)
    template: str = key("", "your own template; '' = lmkit's, in lmkit/launch/templates")
    submit: bool = key(False, "write the script and hand it over; false = print it")
    out: str = key("launch", "folder for scripts that are handed over")

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {f.name: f.default for f in fields(self)}
        for name, targets in _ONLY.items():
            value = getattr(self, name)
            if self.target not in targets and value not in (defaults[name], []):
                known = " and ".join(target.name for target in targets)
                raise ConfigError(
                    f"launch.{name}={value} with launch.target={self.target.name}: only {known} has it; leave it out"
                )
        for name in (f.name for f in fields(self) if f.type is str and f.name not in ("template", "out", "python")):
            if not _WORD.fullmatch(value := getattr(self, name)):
                raise ConfigError(f"launch.{name}={value!r}: one word of letters, digits and ./:@+,=- is needed")
        if self.name and not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"launch.name={self.name}: up to 40 small letters, digits and dashes, as Kubernetes has it; "
                f"try launch.name={slug(self.name)}"
            )
        for line in (*self.setup, *self.options):
            if not line.strip() or not all(letter.isprintable() for letter in line):
                raise ConfigError(f"launch.setup and launch.options: {line!r} is not one line of plain text")

    @property
    def generation(self) -> Generation | None:
        """What a Cloud TPU of launch.accelerator is."""
        kind = self.accelerator.rpartition("-")[0]
        return next((g for g in TPUS if g.accelerator == kind), None)

    @property
    def is_tpu(self) -> bool:
        """Whether it runs on TPUs."""
        return self.target is Target.tpu_pod or self.accelerator in GKE_TPUS


@dataclass(frozen=True)
class Shape:
    """What a job takes: hosts over all slices, chips (TPU) or GPUs a host, and jax devices together (0 = not known)."""

    nodes: int
    per_node: int
    devices: int
    how: str = field(compare=False)  # the keys it follows from, for messages


def shape_of(launch: LaunchConfig, cpu_devices: int) -> Shape:
    """Hosts and devices of a job; `cpu_devices` is run.cpu_devices, which each host pretends to have.

    Raises ConfigError where the keys contradict each other or the target lacks one.
    """
    if launch.target is Target.tpu_pod:
        return _cloud_tpu(launch)
    if launch.is_tpu:
        return _gke_tpu(launch)
    if launch.target is Target.gke and (launch.gpus_per_node > 0) != bool(launch.accelerator):
        raise ConfigError(
            f"launch.accelerator={launch.accelerator or repr('')} with launch.gpus_per_node={launch.gpus_per_node}: "
            f"GPUs need both, such as nvidia-h100-80gb and 8; TPUs are {', '.join(GKE_TPUS)}"
        )
    if launch.topology or launch.slices > 1:
        raise ConfigError(
            f"launch.topology={launch.topology or repr('')} and launch.slices={launch.slices} are of TPUs: set "
            f"launch.accelerator to one of {', '.join(GKE_TPUS)}, or leave them out"
        )
    nodes = launch.nodes or 1
    each = cpu_devices or launch.gpus_per_node
    named = "run.cpu_devices" if cpu_devices else "launch.gpus_per_node"
    return Shape(nodes, launch.gpus_per_node, nodes * each, f"launch.nodes={nodes} x {named}={each}")


def _cloud_tpu(launch: LaunchConfig) -> Shape:
    kind, number = launch.generation, launch.accelerator.rpartition("-")[2]
    if kind is None or not number.isdigit() or int(number) < 1 or int(number) % kind.number_per_chip:
        kinds = ", ".join(f"{g.accelerator}-{16 * g.number_per_chip}" for g in TPUS)
        raise ConfigError(
            f"launch.accelerator={launch.accelerator or repr('')} is no Cloud TPU: they are called {kinds} and so on"
        )
    if not launch.zone:
        raise ConfigError("launch.target=tpu_pod needs launch.zone=, such as us-central2-b")
    chips = int(number) // kind.number_per_chip
    hosts = 1 if chips <= kind.chips_alone else chips // kind.chips_per_host
    return _slices(launch, chips, hosts, kind.devices_per_chip, f"launch.accelerator={launch.accelerator}")


def _gke_tpu(launch: LaunchConfig) -> Shape:
    sizes = launch.topology.split("x")
    if not 2 <= len(sizes) <= 3 or not all(size.isdigit() and int(size) for size in sizes):
        raise ConfigError(
            f"launch.topology={launch.topology or repr('')} with launch.accelerator={launch.accelerator}: a slice has "
            f"two or three sides, such as 4x4 or 2x2x4"
        )
    chips = math.prod(int(size) for size in sizes)
    hosts = launch.nodes // launch.slices if launch.nodes else max(1, chips // 4)
    how = f"launch.topology={launch.topology}"
    if launch.nodes % launch.slices or chips % hosts or chips // hosts not in (1, 4, 8):
        fits = [n for n in (chips, chips // 4, chips // 8) if n and chips % n == 0 and chips // n in (1, 4, 8)]
        raise ConfigError(
            f"launch.nodes={launch.nodes} with {how} and launch.slices={launch.slices}: a TPU host has 1, 4 or 8 "
            f"chips; set launch.nodes to {' or '.join(str(n * launch.slices) for n in sorted(set(fits)))}"
        )
    return _slices(launch, chips, hosts, GKE_TPUS[launch.accelerator], how)


def _slices(launch: LaunchConfig, chips: int, hosts: int, devices_per_chip: int, how: str) -> Shape:
    nodes = hosts * launch.slices
    if launch.nodes not in (0, nodes):
        raise ConfigError(f"launch.nodes={launch.nodes}, but {how} has {nodes} hosts: leave launch.nodes out")
    if launch.slices > 1:
        how = f"launch.slices={launch.slices} x {how}"
    return Shape(nodes, max(1, chips // hosts), chips * devices_per_chip * launch.slices, how)


def slug(text: str) -> str:
    """A name that Slurm, Kubernetes and gcloud all take."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return (words if words[:1].isalpha() else f"run-{words}")[:40].strip("-")
