"""What a plan takes of a machine: keys that are set, else what a run taught about it, else what is assumed."""

import dataclasses
from typing import NamedTuple

import yaml

from lmkit.config.calibration import Calibration, read_calibration
from lmkit.config.paths import conf_dir
from lmkit.config.sections.hardware import HardwareConfig
from lmkit.config.sections.plan import FACTORS, PlanConfig, assumed


class Settled(NamedTuple):
    """Factors and peaks, all of them known, and the calibration that they are from, if any of them is."""

    plan: PlanConfig
    hardware: HardwareConfig
    calibration: Calibration | None


def settle(plan: PlanConfig, hardware: HardwareConfig, devices: int) -> Settled:
    """Raises ConfigError where the user's file of calibrations cannot be read.

    Peaks are calibrated for CPUs alone, whose entry in the catalogue is any CPU: those of the machine, which the
    devices share. A peak that is not the catalogue's was set by hand and stays.
    """
    settled = hardware.platform != "cpu" and all(getattr(plan, name) for name in FACTORS)
    if settled or (found := read_calibration(hardware.name)) is None:  # a search asks thousands of times
        return Settled(_filled(plan, {}, hardware.platform), hardware, None)
    listed = catalogue(hardware.name)
    peaks = {
        name: value / devices for name, value in found.peaks.items() if getattr(hardware, name) == listed.get(name, 0.0)
    }
    used = peaks or any(not getattr(plan, name) for name in found.factors)
    filled = _filled(plan, found.factors, hardware.platform)
    return Settled(filled, dataclasses.replace(hardware, **peaks), found if used else None)


def _filled(plan: PlanConfig, factors: dict[str, float], platform: str) -> PlanConfig:
    return dataclasses.replace(
        plan, **{name: getattr(plan, name) or factors.get(name, value) for name, value in assumed(platform).items()}
    )


def catalogue(name: str) -> dict:
    """The entry of a device as it is written; {} where there is none."""
    file = conf_dir() / "hardware" / f"{name}.yaml"
    return yaml.safe_load(file.read_text()) if file.is_file() else {}
