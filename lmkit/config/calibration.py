"""What runs taught about hardware: a file of the user's, an entry for each device of the catalogue.

It is read by every plan, and may be read, mended or deleted by hand.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lmkit.config.base import ConfigError
from lmkit.config.paths import cache_dir
from lmkit.files import locked, write_text

_ABOUT = """# What runs taught lmkit about hardware: plans for it use the factors below.
# Written by plan.calibrate=RUN_DIR, an entry for each device of the catalogue.
# Delete an entry, or this file, to go back to what is assumed.
"""


@dataclass
class Calibration:
    """One entry: what a run taught about its hardware."""

    hardware: str  # the name in the catalogue
    run: str  # directory
    date: str  # of the calibration
    device: str  # what jax calls the device; of a CPU, the processor
    factors: dict[str, float]  # keys of the section plan; those that the run says nothing about are not there
    peaks: dict[str, float] = field(default_factory=dict)  # keys of the section hardware, of a whole machine: for CPUs
    figures: dict[str, Any] = field(default_factory=dict)  # what it was made from, for the reader

    def __str__(self) -> str:
        return f"calibrated from run {self.run} on {self.date} ({self.device})"


def calibration_file() -> Path:
    """The user's file, in the folder of caches."""
    return cache_dir() / "calibration.yaml"


def read_calibration(hardware: str) -> Calibration | None:
    """The entry for a device of the catalogue, or None. Raises ConfigError where the file is not what was written."""
    entry, place = _entries().get(hardware), f"{calibration_file()}: {hardware}"
    if entry is None:
        return None
    known, needed = {one.name for one in fields(Calibration)}, {"run", "date", "device", "factors"}
    if not isinstance(entry, dict) or not needed <= set(entry) <= known:
        raise ConfigError(f"{place}: it has not the keys that were written; delete the entry and calibrate again")
    found = Calibration(**{"hardware": hardware, **entry})
    for name, value in (found.factors | found.peaks).items():
        if type(value) not in (int, float) or not value > 0:
            raise ConfigError(f"{place}.{name}={value!r}: expected a number above 0; mend or delete the entry")
    return found


def write_calibration(found: Calibration) -> Path:
    """Replaces the entry of its hardware, the file in one step; returns its path. Raises ConfigError if it cannot."""
    file, entry = calibration_file(), asdict(found)
    try:
        with locked(file):  # two runs may have something to say at once
            entries = _entries() | {entry.pop("hardware"): entry}
            write_text(file, _ABOUT + yaml.safe_dump(entries, sort_keys=False))
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}; set LMKIT_CACHE to another folder") from error
    return file


def _entries() -> dict[str, Any]:
    file = calibration_file()
    try:
        entries = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; mend or delete it") from error
    if not isinstance(entries, dict | None):
        raise ConfigError(f"{file}: expected an entry for each device; mend or delete it")
    return entries or {}
