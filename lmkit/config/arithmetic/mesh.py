"""Arithmetic of the mesh, which needs no device: what the axes come to, and whether batch and model fit them."""

import math
from collections.abc import Mapping

from lmkit.config.base import ConfigError
from lmkit.config.sections.mesh import MeshConfig

# Outermost first: neighbours on the last axes are closest on the network, and `tensor` talks most.
AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")
# What splits the batch: outside its pipeline a stage, and outside their layers the experts, have their rows, too.
BATCH_AXES = ("stage", "data", "fsdp", "expert")


def axis_sizes(config: MeshConfig, num_devices: int) -> dict[str, int]:
    """Size of each axis inside a slice and across slices together, the -1 resolved.

    Raises ConfigError when the sizes do not multiply to `num_devices`, naming what would.
    """
    sizes = {
        axis: getattr(config, axis) * (getattr(config.dcn, axis) if getattr(config, axis) > 0 else 1) for axis in AXES
    }
    fixed = math.prod(n for n in sizes.values() if n > 0)
    shown = " ".join(f"{axis}={getattr(config, axis)}" for axis in AXES if getattr(config, axis) != 1) or "all axes 1"
    for axis, size in sizes.items():
        if size == -1:
            if num_devices % fixed:
                near = max(n for n in range(1, num_devices + 1) if num_devices % n == 0 and n <= fixed)
                raise ConfigError(
                    f"mesh {shown}: the other axes take {fixed} devices, which does not divide the {num_devices} here; "
                    f"the nearest product that fits is {near} (to try a mesh on CPU: run.cpu_devices={fixed})"
                )
            sizes[axis] = num_devices // fixed
            dcn = getattr(config.dcn, axis)
            if sizes[axis] % dcn:
                raise ConfigError(f"mesh.dcn.{axis}={dcn} does not divide mesh.{axis}={sizes[axis]}")
    if math.prod(sizes.values()) != num_devices:
        raise ConfigError(
            f"mesh {shown} needs {math.prod(sizes.values())} devices, there are {num_devices}: "
            f"change the mesh, set one axis to -1, or try it on CPU with run.cpu_devices={math.prod(sizes.values())}"
        )
    return sizes


def batch_shards(sizes: Mapping[str, int]) -> int:
    """Into how many parts a mesh of these axis sizes splits the batch."""
    return math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)
