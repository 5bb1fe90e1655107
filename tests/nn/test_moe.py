"""The mixture of experts equals its formula, with its gradients; every token reaches its experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import params_of, tiny_config
from lmkit.config import ConfigError
from lmkit.nn.moe import MoE
from lmkit.nn.param import param_specs

X = jax.random.normal(jax.random.key(0), (3, 10, 64))


def dense(model: MoE, x):
    """Every expert on every token, weighted by the router's choice."""
    probabilities = jax.nn.softmax(x @ model.router.kernel[...], axis=-1)
    chosen = jnp.argsort(-probabilities, axis=-1)[..., : model.config.experts_per_token]
    weights = probabilities * jax.nn.one_hot(chosen, probabilities.shape[-1]).sum(-2)
    if model.config.renormalize_experts:
        weights = weights / weights.sum(-1, keepdims=True)
    up = jnp.einsum("btd,edf->btef", x, model.up[...])
    hidden = up if model.gate is None else jax.nn.silu(jnp.einsum("btd,edf->btef", x, model.gate[...])) * up
    hidden = jax.nn.silu(up) if model.gate is None else hidden
    return jnp.einsum("btef,efd,bte->btd", hidden, model.down[...], weights)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_equals_the_dense_formula(gated: bool, renormalize: bool) -> None:
    config = tiny_config(num_experts=5, experts_per_token=3, gated=gated, renormalize_experts=renormalize, mlp_dim=48)
    graph, params = params_of(MoE(config, residual_std=0.3, rngs=nnx.Rngs(0)))
    params["router"]["kernel"] *= 30  # far from uniform

    def value(function):
        def loss(params, x):
            return jnp.sum(jnp.sin(function(nnx.merge(graph, nnx.State(params)), x)))

        return jax.grad(loss, argnums=(0, 1))(params, X), function(nnx.merge(graph, nnx.State(params)), X)

    for a, b in zip(jax.tree.leaves(value(dense)), jax.tree.leaves(value(lambda m, x: m(x))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()) + 1e-7)


def test_all_tokens_to_one_expert_drops_none() -> None:
    config = tiny_config(num_experts=4, experts_per_token=1, mlp_dim=32)
    model = MoE(config, residual_std=0.3, rngs=nnx.Rngs(0))
    model.router.kernel[...] = jnp.zeros((64, 4)).at[:, 2].set(1.0)
    x = jnp.abs(X)
    expected = jax.nn.silu(x @ model.up[...][2]) @ model.down[...][2]
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_experts_are_a_batch_dim_to_the_optimiser() -> None:
    state = nnx.split(nnx.eval_shape(lambda: MoE(tiny_config(num_experts=4), residual_std=0.1, rngs=nnx.Rngs(0))))[1]
    specs = param_specs(state)
    assert (specs["up"].stacked, specs["up"].num_in) == (1, 1)
    assert specs["router"]["kernel"].stacked == 0


def test_more_experts_a_token_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"experts_per_token=5 of model\.num_experts=4"):
        tiny_config(num_experts=4, experts_per_token=5)
