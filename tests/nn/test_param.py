"""What is known of parameters, and what becomes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import params_of, tiny_model
from lmkit.config.sections.model import DType, Norm, Position
from lmkit.nn.param import param_specs, resting_dtype


@pytest.mark.parametrize(
    "form",
    [{"gated": True, "num_kv_heads": 1, "qk_norm": True}, {"num_experts": 4},
     {"position": Position.learned, "norm": Norm.layernorm, "bias": True}],
    ids=["llama", "experts", "gpt2"],
)  # fmt: skip
def test_parameters_at_rest_give_the_same_logits(form: dict) -> None:
    model = tiny_model(dtype=DType.bfloat16, **form)
    graph, params = params_of(model)
    specs = param_specs(nnx.split(model)[1])
    tokens = jnp.arange(32).reshape(2, 16) % 7

    @jax.jit
    def logits(params):
        return nnx.merge(graph, nnx.State(params))(tokens)

    small = jax.tree.map(lambda spec, leaf: leaf.astype(resting_dtype(model.config, spec)), specs, params)
    np.testing.assert_array_equal(logits(small), logits(params))
    kept = {leaf.dtype for leaf in jax.tree.leaves(small)}
    assert kept == {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (small, params)]
    assert sizes[0] < 0.6 * sizes[1]
