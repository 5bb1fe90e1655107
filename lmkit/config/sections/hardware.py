"""Devices: what one can do, what it costs, how many there are. The catalogue is in conf/hardware/."""

import difflib
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from lmkit.config.base import ConfigError, Section, key, nearest
from lmkit.config.paths import conf_dir, options_of

_SIDES = re.compile(r"\d+(x\d+){1,2}")
_SIZED = re.compile(r"(?P<kind>\w+?)(_(?P<count>\d+)|:(?P<sides>[\dx]+))?")  # h100_64, v5p:8x8x8


@dataclass
class HardwareConfig(Section):
    """What a device can do. Figures are of one jax device, peaks are dense; 0 where a figure is not known."""

    section: ClassVar[str] = "hardware"
    changes_results: ClassVar[bool] = False

    name: str = key("auto", "name of the entry; auto matches the devices found against the catalogue")
    device_kinds: list[str] = key([], "what jax calls the device, or the start of it")
    devices: int = key(0, "how many a plan is made for; hardware=h100_64 sets it", at_least=0)
    topology: str = key("", "chips along each side of a TPU slice; '' = the usual slice of so many")
    platform: str = key("", "cpu, gpu or tpu")
    bf16_tflops: float = key(0.0, "peak bfloat16 rate; 0 = not known", at_least=0.0)
    fp32_tflops: float = key(0.0, "peak float32 matmul rate (TF32 where float32 matmuls use it)", at_least=0.0)
    fp8_tflops: float = key(0.0, "peak float8 rate; 0 = none", at_least=0.0)
    int8_tops: float = key(0.0, "peak int8 rate; 0 = none", at_least=0.0)
    matrix_share: float = key(
        0.0, "share of the peak that a large bfloat16 matrix product reaches alone; 0 = not known, taken as 1",
        at_least=0.0, at_most=1.0,
    )  # fmt: skip
    memory_gib: float = key(0.0, "memory of a device", at_least=0.0)
    memory_gb_per_sec: float = key(0.0, "bandwidth of that memory", at_least=0.0)
    link_gb_per_sec: float = key(
        0.0, "one way, to the neighbours: of all of a GPU's NVLinks, of one of a TPU's links", at_least=0.0
    )
    dcn_gb_per_sec: float = key(0.0, "one way, between nodes of GPUs or slices of TPUs", at_least=0.0)
    devices_per_host: int = key(1, "devices that share a host (and, of GPUs, NVLink)", at_least=1)
    devices_per_chip: int = key(1, "devices that a chip is to jax", at_least=1)
    host_memory_gib: float = key(0.0, "memory of a host", at_least=0.0)
    slices: list[str] = key([], "topologies that TPUs are offered in, smallest first")
    wraps_from: int = key(4, "a side of so many chips, or a multiple, is closed to a ring", at_least=1)
    power_watts: float = key(0.0, "electricity of a device under load", at_least=0.0)
    price_usd_per_hour: float = key(0.0, "price of a device for an hour", at_least=0.0)
    price_source: str = key("", "whose price that is, and of when")
    source: str = key("", "where the figures come from")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, topology in [("topology", self.topology), *(("slices", one) for one in self.slices)]:
            if topology and not _SIDES.fullmatch(topology):
                raise ConfigError(
                    f"hardware.{name}={topology}: a topology is chips along two or three sides, such as 8x8x8"
                )

    def slice_sides(self, num_slices: int) -> tuple[int, ...]:
        """Chips along the sides of each of `num_slices` equal TPU slices; () for what is no TPU.

        Raises ConfigError where no slice has so many, or there is no such topology, naming the nearest.
        """
        if not self.slices:
            return ()
        chips, rest = divmod(self.devices, self.devices_per_chip * num_slices)
        if self.topology:
            found = self._checked(self.topology)
        else:
            found = next((one for one in self.slices if math.prod(sides_of(one)) == chips), "")
        if rest or not found or math.prod(sides_of(found)) != chips:
            counts = [math.prod(sides_of(one)) * self.devices_per_chip * num_slices for one in self.slices]
            near = sorted(sorted(counts, key=lambda n: abs(n - self.devices))[:2])
            many = f" in {num_slices} slices (mesh.dcn)" if num_slices > 1 else ""
            most = max(counts)
            more = f"; more than {most} are several slices: set mesh.dcn.data" if self.devices > most else ""
            what = f" of topology {self.topology}" if self.topology else ""
            raise ConfigError(
                f"hardware.devices={self.devices}: {self.name} has no slice{what} of so many{many}; the nearest are "
                f"{' and '.join(map(str, near))}{more}"
            )
        return sides_of(found)

    def _checked(self, topology: str) -> str:
        sides = sides_of(topology)
        if topology in self.slices or (len(sides) == 3 and all(side % self.wraps_from == 0 for side in sides)):
            return topology
        (near,) = difflib.get_close_matches(topology, self.slices, n=1, cutoff=0.0)
        raise ConfigError(
            f"hardware.topology={topology}: {self.name} has no such slice. Did you mean {near}? "
            f"There are {', '.join(self.slices)}"
        )


def sides_of(topology: str) -> tuple[int, ...]:
    """8x8x16 as (8, 8, 16)."""
    return tuple(int(side) for side in topology.split("x"))


def sized(option: str) -> dict[str, Any] | None:
    """The entry that h100_64, v5p_512 (jax devices) or v5p:8x8x8 (chips) stand for; None for the name of a file.

    A TPU's name may be written without its tpu_. Raises ConfigError for an unknown device, naming the nearest.
    """
    names = options_of("hardware")
    if option in names or not (match := _SIZED.fullmatch(option)):
        return None
    kind = match["kind"] if match["kind"] in names else f"tpu_{match['kind']}"
    if kind not in names:
        short = [name.removeprefix("tpu_") for name in names]
        raise ConfigError(
            f"no hardware named {option!r}.{nearest(match['kind'], short)} There are: {', '.join(names)}; a number or "
            f"a topology may follow, such as h100_64 or v5p:8x8x8"
        )
    entry = yaml.safe_load((conf_dir() / "hardware" / f"{kind}.yaml").read_text())
    if match["count"]:
        entry["devices"] = int(match["count"])
    if match["sides"]:
        if not _SIDES.fullmatch(match["sides"]):
            raise ConfigError(f"hardware={option}: a topology is chips along two or three sides, such as 8x8x8")
        entry["topology"] = match["sides"]
        entry["devices"] = math.prod(sides_of(match["sides"])) * entry.get("devices_per_chip", 1)
    return entry


def known_hardware(config: HardwareConfig, device_kind: str) -> HardwareConfig | None:
    """The catalogue's entry for the devices found (or the one that was chosen); None where there is none."""
    if config.name != "auto":
        return config
    found = [
        (len(kind), str(path), entry)
        for path in (conf_dir() / "hardware").glob("*.yaml")
        for entry in [yaml.safe_load(path.read_text())]
        for kind in entry.get("device_kinds", [])
        if device_kind.lower().startswith(kind.lower())
    ]
    return (
        HardwareConfig(**max(found, key=lambda one: one[:2])[2]) if found else None
    )  # "TPU v5p" says more than "TPU v5"
