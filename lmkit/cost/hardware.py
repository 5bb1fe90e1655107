"""What the devices here can do and hold: peaks, short measurements, memory in use."""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lmkit.config.base import ConfigError
from lmkit.config.sections.hardware import HardwareConfig

Clock = Callable[[], float]


def peak_flops(hardware: HardwareConfig | None, dtype: jnp.dtype) -> float:
    """Peak FLOP/s of a device at a compute dtype; 0 where it is not known."""
    if hardware is None:
        return 0.0
    return 1e12 * (hardware.bf16_tflops if dtype == jnp.bfloat16 else hardware.fp32_tflops)


def matmul_flops(dtype: jnp.dtype, size: int = 1024, repeats: int = 6, clock: Clock = time.perf_counter) -> float:
    """Measured FLOP/s of a square matrix product on one device: the best of a few, about 0.1 s on a CPU."""
    return 2 * size**3 / _fastest(lambda x: x @ x, jnp.ones((size, size), dtype), repeats, clock)


def copy_rate(mebibytes: int = 64, repeats: int = 5, clock: Clock = time.perf_counter) -> float:
    """Measured bytes/s between a device and its memory, of an array read and another written: the best of a few."""
    x = jnp.ones(mebibytes * 2**20 // 4, jnp.float32)
    return 2 * x.nbytes / _fastest(lambda x: x + 1, x, repeats, clock)


def _fastest(work: Callable[[jax.Array], jax.Array], x: jax.Array, repeats: int, clock: Clock) -> float:
    """Seconds of the fastest of a few calls, compiled before."""
    call, best = jax.jit(work), float("inf")
    call(x).block_until_ready()
    for _ in range(repeats):
        start = clock()
        call(x).block_until_ready()
        best = min(best, clock() - start)
    return best


def cores_here() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: Any) -> str:
    """What jax calls a device; of a CPU, the processor and on how many of its cores this process may run."""
    if device.platform != "cpu":
        return device.device_kind
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{cores_here()} x {names[0] if names else platform.processor() or platform.machine()}"


def check_fits(hardware: HardwareConfig | None, needed_bytes: float) -> None:
    """Raises ConfigError where a device has less memory than the compiled step needs."""
    if hardware is not None and hardware.memory_gib and needed_bytes > hardware.memory_gib * 2**30:
        raise ConfigError(
            f"the step needs {needed_bytes / 2**30:.1f} GiB a device, {hardware.name} has {hardware.memory_gib:g}: "
            f"raise mesh.fsdp or train.accumulate_steps, or set model.remat=full"
        )


def memory_now() -> dict[str, float]:
    """memory/host_bytes (resident set of this process), and memory/device_bytes where the device tells."""
    try:
        host = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak so far
        host = peak_resident()
    stats = jax.local_devices()[0].memory_stats() or {}
    device = {"memory/device_bytes": float(stats["bytes_in_use"])} if "bytes_in_use" in stats else {}
    return {"memory/host_bytes": float(host), **device}


def peak_resident() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_memory() -> int:
    """Largest resident set of this process so far, or of a device where it tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", peak_resident()))
