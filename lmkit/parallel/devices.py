"""What must be set before the first device is touched."""

import dataclasses

import jax

from lmkit.config.paths import cache_dir
from lmkit.config.sections.run import RunConfig


def setup_jax(run: RunConfig) -> None:
    """Pretended devices and the cache of compiled programs."""
    if devices := run.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        if jax.config.jax_num_cpu_devices != devices:  # type: ignore[attr-defined]  # it cannot change any more later
            jax.config.update("jax_num_cpu_devices", devices)
    if run.compile_cache:
        folder = cache_dir() / "xla" if run.compile_cache == "auto" else run.compile_cache
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def setup_cpu(run: RunConfig, devices: int = 1) -> None:
    """For verbs that run nothing: accelerators that are here may be busy. At least so many CPU devices."""
    here = max(run.cpu_devices, jax.config.jax_num_cpu_devices, devices)  # type: ignore[attr-defined]
    setup_jax(dataclasses.replace(run, cpu_devices=here))


def platform() -> str:
    """cpu, gpu or tpu: of the mesh in the context, whose devices may be far away, else of the devices here."""
    mesh = jax.sharding.get_abstract_mesh()
    return _plain(
        jax.default_backend() if mesh.empty or mesh.abstract_device is None else mesh.abstract_device.platform
    )


def platform_of(mesh: jax.sharding.Mesh | None) -> str:
    """cpu, gpu or tpu: of the devices of a mesh; without one, of those here."""
    return _plain(jax.default_backend() if mesh is None else mesh.devices.flat[0].platform)


def _plain(name: str) -> str:
    return "gpu" if name in ("cuda", "rocm") else name
