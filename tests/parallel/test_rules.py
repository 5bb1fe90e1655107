"""The one table: logical dims to mesh axes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from lmkit.config import ConfigError
from lmkit.config.sections.mesh import MeshConfig
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import current_spec, reshard, sharding_of, spec_of

SIZES = {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}


def test_axes_of_size_one_are_dropped() -> None:
    assert spec_of(("batch", "seq_norm", "width"), SIZES) == P(("data", "fsdp"), "tensor", None)
    assert spec_of(("batch", "seq_norm", "width"), SIZES | {"data": 1, "tensor": 1}) == P("fsdp", None, None)
    assert spec_of(("layers", "embed", "heads", "head"), SIZES) == P(None, "fsdp", "tensor", None)


def test_two_dims_that_want_one_axis_collide() -> None:
    with pytest.raises(ConfigError, match="'heads' and 'mlp'.*'tensor'"):
        spec_of(("heads", "mlp"), SIZES)


def test_unknown_dim() -> None:
    with pytest.raises(ConfigError, match="'head_dim'"):
        spec_of(("head_dim",), SIZES)


def test_indivisible_dim_names_the_array_and_sizes() -> None:
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with pytest.raises(ConfigError, match=r"embed.table.*50257.*tensor = 2.*50256 and 50258"):
        sharding_of(("vocab", "embed"), mesh, (50257, 768), "embed.table")


def test_without_a_mesh_nothing_is_constrained() -> None:
    assert current_spec(("batch", "seq")) is None
    x = jnp.ones((2, 3))
    assert reshard(x, ("batch", "seq")) is x


def test_reshard_moves_to_the_layout() -> None:
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: reshard(x, ("batch", "seq_norm", "width")))(jnp.ones((8, 4, 2)))
    assert y.sharding.spec == P(("data", "fsdp"), "tensor", None)
