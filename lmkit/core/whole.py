"""Parameters to decode with: not split over `fsdp`, of which each token would gather all."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from lmkit import hosts
from lmkit.core.state import Blueprint, State, evaluation_params, local_bytes
from lmkit.nn.param import resting_dtype

_USABLE = 0.9  # of a device's memory: the rest is the cache's, and lost between blocks


class Whole:
    """A copy of the parameters that are evaluated, made anew for each use, in the dtypes of a model at rest.

    It lies on `mesh`: the same devices, where those of `fsdp` are more of `data`. Where fsdp is 1, or without `copy`,
    the parameters are taken as they are.
    """

    def __init__(self, blueprint: Blueprint, *, copy: bool = True):
        self._blueprint, self.mesh, self._shapes = blueprint, blueprint.mesh, None
        sizes = dict(blueprint.mesh.shape)
        if copy and sizes["fsdp"] > 1:
            sizes |= {"data": sizes["data"] * sizes["fsdp"], "fsdp": 1}
            devices = blueprint.mesh.devices.reshape(list(sizes.values()))
            self.mesh = Mesh(devices, blueprint.mesh.axis_names, axis_types=blueprint.mesh.axis_types)
            self._shapes = jax.tree.map(self._at_rest, blueprint.on(self.mesh).param_shapes, blueprint.specs)

    def _at_rest(self, leaf: Any, spec: Any) -> jax.ShapeDtypeStruct:
        dtype = resting_dtype(self._blueprint.model_config, spec)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    @property
    def nbytes(self) -> float:
        """Of the copy, on a device."""
        return local_bytes(self._shapes)

    def params(self, state: State) -> Any:
        """All parameters to decode with."""
        params = evaluation_params(self._blueprint, state)
        if self._shapes is None:
            return params
        return jax.tree.map(
            lambda leaf, shape: jax.device_put(leaf.astype(shape.dtype), shape.sharding), params, self._shapes
        )


def room_for_copy(blueprint: Blueprint, asked_gib: float) -> float:
    """Bytes of a device that a copy of the parameters may take: as asked, or what the state leaves where it is 0.

    Infinite where the devices do not tell what they have.
    """
    if asked_gib:
        return asked_gib * 2**30
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
    return float(hosts.share("room", repr(_USABLE * limit - blueprint.state_bytes_per_device)))


def no_samples(whole: Whole, room: float, fsdp: int) -> str:
    """Why no samples are made, in a line."""
    needed = whole.nbytes / 2**30
    return (
        f"no samples: parameters that are not split over mesh.fsdp={fsdp} take {needed:.1f} GiB a device, of which "
        f"{max(room, 0) / 2**30:.1f} are there; train.sample_gib={math.ceil(needed)} makes them all the same"
    )
