"""What the plan said of a run, and what came of it: the step's time and the memory of a device.

Planned by the arithmetic of lmkit/plan at the start, measured over the steps of this process, and both kept in the
receipt: lmkit/plan/calibrate.py learns from them.
"""

import array
import dataclasses
import os
import statistics
import time
from typing import Any

import jax

from lmkit.config.calibration import read_calibration
from lmkit.config.experiment import Experiment
from lmkit.config.sections.hardware import HardwareConfig, known_hardware, sized
from lmkit.config.sections.plan import FACTORS
from lmkit.console import size
from lmkit.core.state import Blueprint
from lmkit.cost.estimate import Estimate, estimate
from lmkit.cost.hardware import copy_rate, cores_here, device_name, matmul_flops, peak_resident
from lmkit.cost.terms import terms_of
from lmkit.nn.param import compute_dtype

FEWEST = 3  # steps, of which a median is taken


def plan_run(experiment: Experiment, blueprint: Blueprint) -> dict[str, Any]:
    """What the plan says of a run on the devices here; {"reason": ...} where it has nothing to say.

    It raises nothing: whatever the plan cannot do, the run goes on.
    """
    device, devices = blueprint.mesh.devices.flat[0], blueprint.mesh.devices.size
    try:
        if (hardware := _hardware(experiment, blueprint)) is None:
            return {"reason": f"the catalogue in conf/hardware has no {device.device_kind}"}
        here = dataclasses.replace(
            experiment, model=blueprint.model_config, hardware=dataclasses.replace(hardware, devices=devices)
        )
        return _as_plain(estimate(here, blueprint), device_name(device))
    except Exception as error:  # a mistake of the plan's, too, must not cost a run
        return {"reason": f"{type(error).__name__}: {error}"}


def _hardware(experiment: Experiment, blueprint: Blueprint) -> HardwareConfig | None:
    """The catalogue's entry for the devices. A CPU's has what is measured now, unless a run on it taught its peaks."""
    device, devices = blueprint.mesh.devices.flat[0], blueprint.mesh.devices.size
    if device.platform != "cpu" or experiment.hardware.name != "auto":
        return known_hardware(experiment.hardware, device.device_kind)
    entry = HardwareConfig(**sized("cpu_1") or {})
    learnt = read_calibration(entry.name)
    if learnt is not None and learnt.device == device_name(device):  # of another CPU the shares are of use, no peaks
        return entry
    dtype = compute_dtype(next(iter(blueprint.model_config.towers().values())).dtype)
    peak = "bf16_tflops" if dtype.itemsize == 2 else "fp32_tflops"
    busy, cores = time.process_time, cores_here()  # of CPU seconds, which neighbours on the machine do not change
    rates = {peak: matmul_flops(dtype, clock=busy) / 1e12, "memory_gb_per_sec": copy_rate(clock=busy) / 1e9}
    return dataclasses.replace(entry, **{name: rate * cores / devices for name, rate in rates.items()})


def _as_plain(found: Estimate, device: str) -> dict[str, Any]:
    """For the receipt. Peaks are those of the machine, and there for CPUs alone."""
    hardware, devices = found.context.experiment.hardware, found.context.num_devices
    names = ("bf16_tflops" if found.context.itemsize == 2 else "fp32_tflops", "memory_gb_per_sec")
    peaks = {name: getattr(hardware, name) * devices for name in names if hardware.platform == "cpu"}
    return {
        "hardware": hardware.name,
        "devices": devices,
        "device": device,
        "factors": {name: getattr(found.context.experiment.plan, name) for name in FACTORS},
        "from": str(found.calibration or "assumed or set by hand"),
        "peaks": {name: peak for name, peak in peaks.items() if peak},
        "terms": terms_of(found)._asdict(),
        "step_sec": found.step.total,
        "bound": found.step.bound,
        "tokens_per_sec": found.tokens_per_sec,
        "mfu": found.mfu,
        "memory_bytes": found.memory.peak,
    }


class Clock:
    """Seconds of each step of this process, on the wall and of its CPUs, without compiling, evaluations and saves."""

    def __init__(self) -> None:
        self.wall, self.cpu = array.array("d"), array.array("d")
        self.device_peak = 0  # bytes of the fullest device here, before the first evaluation; 0 = it does not tell
        self._last: tuple[float, float] | None = None
        self._looked = False

    def ended(self) -> None:
        """A step has ended, while the device runs the next one: its time is that since the one before."""
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.wall.append(now[0] - self._last[0])
            self.cpu.append(now[1] - self._last[1])
        self._last = now

    def pause(self) -> None:
        """Something else comes between the steps, and the next one starts on an idle device."""
        self._last = None
        if not self._looked:  # later, what an evaluation takes would be in it
            self._looked = True
            stats = [device.memory_stats() or {} for device in jax.local_devices()]
            self.device_peak = max(int(one.get("peak_bytes_in_use", 0)) for one in stats)


def measure_run(clock: Clock, planned: dict[str, Any], tokens_per_step: int, compiled_bytes: int) -> dict[str, Any]:
    """What came of a run in this process; {"reason": ...} beside its memory where steps are too few.

    Memory is the devices' own count where they have one, and what the compiler gave the step (arguments and
    temporaries, the state counted once) where they do not, as a CPU. The process's peak stands beside it, and beside
    the seconds of a step those of the process's CPUs.
    """
    clock.pause()
    measured: dict[str, Any] = {
        "memory_bytes": clock.device_peak or compiled_bytes,
        "memory_of": "the fullest device" if clock.device_peak else "the compiled step",
        "process_peak_bytes": peak_resident(),
        "steps": len(clock.wall),
        "cores": cores_here(),
        "processes": jax.process_count(),
        "load": os.getloadavg()[0],  # of the last minute: on a busy machine a CPU's steps take longer
    }
    if len(clock.wall) < FEWEST:
        return measured | {"reason": f"{len(clock.wall)} steps in a row: a median takes {FEWEST}"}
    seconds = statistics.median(clock.wall)
    step = {
        "step_sec": seconds, "cpu_sec": statistics.median(clock.cpu), "tokens_per_sec": tokens_per_step / seconds,
    }  # fmt: skip
    mfu = {"mfu": planned["mfu"] * planned["step_sec"] / seconds} if planned.get("mfu") else {}
    return step | mfu | measured


def compare_run(planned: dict[str, Any], measured: dict[str, Any]) -> str:
    """Both in a line."""
    if "reason" in planned:
        return f"not planned: {planned['reason']}"
    if "reason" in measured:
        return f"planned {planned['step_sec']:.3g} s a step, not measured: {measured['reason']}"
    ratio = planned["step_sec"] / measured["step_sec"]
    room = planned["memory_bytes"] / measured["memory_bytes"]
    return (
        f"planned {planned['step_sec']:.3g} s a step, measured {measured['step_sec']:.3g} ({ratio:.2f}); planned "
        f"{size(planned['memory_bytes'])} a device, measured {size(measured['memory_bytes'])} ({room:.2f})"
    )
