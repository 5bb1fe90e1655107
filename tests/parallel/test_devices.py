"""Which platform a program is for."""

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from lmkit.parallel.devices import platform


def test_the_mesh_decides() -> None:
    """A mesh of devices that are not here, as when a step is compiled for a pod."""
    assert platform() == jax.default_backend() == "cpu"
    far = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Explicit,), abstract_device=far)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu"
        seen = []
        jax.jit(lambda x: seen.append(platform()) or x).trace(np.ones(8))
        assert seen == ["tpu"]
    with jax.sharding.use_abstract_mesh(AbstractMesh((8,), ("data",), axis_types=(AxisType.Explicit,))):
        assert platform() == "cpu"
