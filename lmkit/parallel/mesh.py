"""The device mesh: always all six axes, size 1 where unused, Explicit sharding types."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lmkit.config.base import ConfigError
from lmkit.config.sections import MeshConfig
from lmkit.parallel.rules import BATCH_AXES

# Outermost first: neighbours on the last axes are closest on the network, and `tensor` talks most.
AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")


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


def build_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over `devices` (default: all). Axes with a DCN part are split slice-major."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = axis_sizes(config, len(devices))
    dcn = [getattr(config.dcn, axis) for axis in AXES]
    shape = [sizes[axis] for axis in AXES]
    if math.prod(dcn) > 1:
        inner = [n // d for n, d in zip(shape, dcn, strict=True)]
        slices = {getattr(d, "slice_index", 0) for d in devices}
        if len(slices) > 1:
            grid = mesh_utils.create_hybrid_device_mesh(inner, dcn, devices, allow_split_physical_axes=True)
        else:  # no slices on this backend: treat consecutive devices as one
            grid = np.array(devices).reshape([*dcn, *inner])
            grid = grid.transpose([i for pair in zip(range(6), range(6, 12), strict=True) for i in pair]).reshape(shape)
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def batch_shards(sizes: Mapping[str, int]) -> int:
    """Into how many parts a mesh of these axis sizes splits the batch."""
    return math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)
