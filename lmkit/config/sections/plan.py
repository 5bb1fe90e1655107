"""What a plan assumes: of the machine in practice, of the length of the run, of the electricity."""

from dataclasses import dataclass, fields
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key, nearest
from lmkit.config.sections.mesh import AxesConfig

# What is taken of a machine that no run has taught anything about, by platform. Of GPUs and TPUs compute_share,
# memory_share and exposed_share are fitted to published throughputs: `python tools/plan_record.py --fit`, docs/plan.md.
# The others are assumptions. On a CPU the same cores compute and copy, so nothing that is sent is hidden.
_ASSUMED = {
    "gpu": {
        "compute_share": 0.78, "memory_share": 0.54, "network_share": 0.8, "exposed_share": 0.46,
        "step_overhead_sec": 1e-3,
    },
    "tpu": {
        "compute_share": 1.0, "memory_share": 0.87, "network_share": 0.8, "exposed_share": 0.09,
        "step_overhead_sec": 1e-3,
    },
    "cpu": {
        "compute_share": 0.7, "memory_share": 0.8, "network_share": 0.8, "exposed_share": 1.0,
        "step_overhead_sec": 1e-3,
    },
}  # fmt: skip
FACTORS = tuple(_ASSUMED["cpu"])


def assumed(platform: str) -> dict[str, float]:
    """The factors of a platform before any calibration; of one that is not known, those of a CPU."""
    return _ASSUMED.get(platform, _ASSUMED["cpu"])


def _told(name: str) -> str:
    """What is assumed, for the documentation of a key."""
    values = {platform: factors[name] for platform, factors in _ASSUMED.items()}
    if len(set(values.values())) == 1:
        return f"0 = as calibrated, else {values['cpu']:g}"
    return "0 = as calibrated, else " + ", ".join(f"{value:g} on a {name.upper()}" for name, value in values.items())


@dataclass
class PlanConfig(Section):
    """Will it fit, how long, what does it cost."""

    section: ClassVar[str] = "plan"
    changes_results: ClassVar[bool] = False

    tokens: float = key(0.0, "tokens to train on; 0 = those of train.steps", at_least=0.0)
    compute_share: float = key(
        0.0,
        f"share of the rate of large matrix products (hardware.matrix_share of the peak) that those of a step reach; "
        f"{_told('compute_share')}",
        at_least=0.0, at_most=1.0,
    )  # fmt: skip
    memory_share: float = key(
        0.0,
        f"share of the memory's bandwidth that is reached; {_told('memory_share')}",
        at_least=0.0, at_most=1.0,
    )  # fmt: skip
    network_share: float = key(
        0.0,
        f"share of a network's bandwidth that is reached; {_told('network_share')}",
        at_least=0.0, at_most=1.0,
    )  # fmt: skip
    exposed_share: float = key(
        0.0,
        f"share of the time of what is sent over data, fsdp, context and stage that is not hidden behind computing; "
        f"{_told('exposed_share')}",
        at_least=0.0, at_most=1.0,
    )  # fmt: skip
    step_overhead_sec: float = key(
        0.0,
        f"seconds of every step that no rate explains: dispatch, small operations; {_told('step_overhead_sec')}",
        at_least=0.0,
    )  # fmt: skip
    usable_share: float = key(0.95, "share of a device's memory that the step may take", at_least=0.1, at_most=1.0)
    pue: float = key(
        1.1, "electricity of the data centre over that of the devices (Google's fleet in 2023: 1.10)", at_least=1.0
    )
    co2_g_per_kwh: float = key(481.0, "grams of CO2 for a kWh (the world's mean in 2023, Ember 2024)", at_least=0.0)
    compile: bool = key(False, "have the compiler for that hardware make the step, too; the hardware need not be here")
    search: bool = key(False, "look for the mesh, model.remat and train.accumulate_steps with most tokens a second")
    axes: list[str] = key(
        ["data", "fsdp", "tensor", "expert"], "mesh axes that a search may split; expert where there are experts"
    )
    confirm: int = key(3, "with plan.search and plan.compile: how many of the best are compiled", at_least=1)
    save: str = key("", "a YAML file for what a search found best; in a folder of yours, experiment/NAME.yaml")
    calibrate: str = key("", "directory of a run: what it measured sets these factors in later plans for its hardware")
    json: str = key("", "a file for every figure of the plan; - prints it in place of the tables")

    def __post_init__(self) -> None:
        super().__post_init__()
        axes = [one.name for one in fields(AxesConfig)]
        if bad := sorted(set(self.axes) - set(axes)):
            raise ConfigError(
                f"plan.axes: {bad[0]} is no mesh axis.{nearest(bad[0], axes)} There are {', '.join(axes)}"
            )
