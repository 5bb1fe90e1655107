"""What must be set before the first device is touched."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax

from lmkit.config.base import ConfigError
from lmkit.config.paths import cache_dir
from lmkit.config.sections.run import RunConfig
from lmkit.files import share_files

_traced_for: ContextVar[str] = ContextVar("platform", default="")


def setup_jax(run: RunConfig) -> None:
    """Pretended devices and the cache of compiled programs."""
    if devices := run.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        if jax.config.jax_num_cpu_devices != devices:  # type: ignore[attr-defined]  # it cannot change any more later
            jax.config.update("jax_num_cpu_devices", devices)
    if run.compile_cache:
        folder = programs_dir(run)
        jax.config.update("jax_compilation_cache_dir", folder)
        if "://" not in folder:
            with contextlib.suppress(OSError):  # jax says so, and goes on without it
                Path(folder).mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def devices_here() -> list[Any]:
    """All devices. Raises ConfigError where there are none of the platform that was asked for."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion where the platform's plug-in is not installed
        asked = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms  # type: ignore[attr-defined]
        if not asked:
            raise
        reason = (str(error).strip().splitlines() or ["no such platform here"])[0]
        raise ConfigError(
            f"JAX_PLATFORMS={asked}: {reason}; unset it, or install what jax needs there: lmkit[gpu], lmkit[tpu]"
        ) from error


def programs_dir(run: RunConfig) -> str:
    """The folder of compiled programs, '' for none."""
    return str(cache_dir() / "xla") if run.compile_cache == "auto" else run.compile_cache


def share_programs(run: RunConfig) -> None:
    """jax writes compiled programs with the umask of the run; others may read them as all of the cache."""
    if run.compile_cache:
        share_files(Path(programs_dir(run)))


def setup_cpu(run: RunConfig, devices: int = 1) -> None:
    """For verbs that run nothing: accelerators that are here may be busy. At least so many CPU devices."""
    here = max(run.cpu_devices, jax.config.jax_num_cpu_devices, devices)  # type: ignore[attr-defined]
    setup_jax(dataclasses.replace(run, cpu_devices=here))


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
    """What is traced in the block takes the forms of this platform; those of a CPU are plain XLA, good for all."""
    token = _traced_for.set(name)
    try:
        yield
    finally:
        _traced_for.reset(token)


def platform() -> str:
    """cpu, gpu or tpu: of the mesh in the context, whose devices may be far away, else of the devices here."""
    if said := _traced_for.get():
        return said
    mesh = jax.sharding.get_abstract_mesh()
    return _plain(
        jax.default_backend() if mesh.empty or mesh.abstract_device is None else mesh.abstract_device.platform
    )


def platform_of(mesh: jax.sharding.Mesh | None) -> str:
    """cpu, gpu or tpu: of the devices of a mesh; without one, of those here."""
    return _plain(jax.default_backend() if mesh is None else mesh.devices.flat[0].platform)


def _plain(name: str) -> str:
    return "gpu" if name in ("cuda", "rocm") else name
