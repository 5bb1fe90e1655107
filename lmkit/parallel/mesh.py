"""The device mesh: always all six axes, size 1 where unused, Explicit sharding types."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lmkit.config.arithmetic.mesh import AXES, axis_sizes
from lmkit.config.sections.mesh import MeshConfig
from lmkit.parallel.devices import devices_here


def build_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over `devices` (default: all). Axes with a DCN part are split slice-major."""
    devices = list(devices_here() if devices is None else devices)
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
