"""Meshes and the one table of sharding rules."""

from lmkit.config.arithmetic.mesh import AXES, batch_shards
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import current_spec, reshard, sharding_of, spec_of

__all__ = ["AXES", "batch_shards", "build_mesh", "current_spec", "reshard", "sharding_of", "spec_of"]
