"""The linear layer on a mesh: one flat product wherever only the batch is split."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import MESHES
from lmkit.config.entry import compose
from lmkit.nn.linear import Linear
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import Dims, sharding_of

STREAM: Dims = ("batch", "seq_norm", "width")


@pytest.mark.parametrize(("mesh_name", "out", "flat"), [
    ("fsdp8", ("batch", "seq", "heads", "head"), True),
    ("data2_fsdp2_tensor2", ("batch", "seq", "heads", "head"), True),
    ("fsdp8", STREAM, True),
    ("data2_fsdp2_tensor2", STREAM, False),  # the sum is scattered over the sequence
])  # fmt: skip
def test_the_weight_gradient_contracts_one_dim(mesh_name: str, out: Dims, flat: bool) -> None:
    """[B, T] contractions run at a third of the speed on a CPU. The numbers are those of one device."""
    wide, narrow = {"heads": 4, "head": 8}, {"embed": 16}
    ins, outs = (wide, narrow) if out is STREAM else (narrow, wide)
    linear = Linear(ins, outs, std=0.5, bias=False, rngs=nnx.Rngs(0))
    graph, dims = nnx.split(linear)[0], ("batch", "seq", *(ins if out is STREAM else ["width"]))
    mesh = build_mesh(compose(["run.name=x", *MESHES[mesh_name]]).mesh)
    kernel, x = linear.kernel[...], np.random.default_rng(0).normal(size=(8, 6, *ins.values())).astype(np.float32)

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        y = nnx.merge(graph, nnx.State({"kernel": kernel}))(x, out)
        return jnp.sum(jnp.sin(y))

    expected = jax.value_and_grad(loss, argnums=(0, 1))(kernel, x)
    with jax.set_mesh(mesh):
        placed = jax.device_put(kernel, sharding_of((*ins, *outs), mesh)), jax.device_put(x, sharding_of(dims, mesh))
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*placed)
        got = lowered.compile()(*placed)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # float32 sums in another order
    assert bool(re.search(r"contracting_dims = \[0, 1\] x \[0, 1\]", lowered.as_text())) is not flat
