"""The feed-forward sub-layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.sections.model import Activation, TransformerConfig
from lmkit.nn.forms import recomputed
from lmkit.nn.linear import Linear
from lmkit.parallel.rules import gathered_dims, residual_dims

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    Activation.gelu: partial(jax.nn.gelu, approximate=False),
    Activation.gelu_tanh: partial(jax.nn.gelu, approximate=True),
    Activation.silu: jax.nn.silu,
    Activation.relu: jax.nn.relu,
    Activation.quick_gelu: lambda x: x * jax.nn.sigmoid(1.702 * x),
    Activation.relu2: lambda x: jnp.square(jax.nn.relu(x)),
}


def activate(kind: Activation, x: jax.Array) -> jax.Array:
    """An activation of `x` in its dtype, computed in float32 and rounded once; the backward pass keeps `x` alone."""
    y: Any = _activate(kind, x)
    return y


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activate(kind, x):
    return ACTIVATIONS[kind](x.astype(jnp.float32)).astype(x.dtype)


def _forward(kind, x):
    return _activate(kind, x), x


def _backward(kind, x, d_y):
    back = jax.vjp(ACTIVATIONS[kind], recomputed(x).astype(jnp.float32))[1]
    return (back(d_y.astype(jnp.float32))[0].astype(x.dtype),)


_activate.defvjp(_forward, _backward)


class MLP(nnx.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) (Shazeer 2020, equation 6) when gated."""

    def __init__(self, config: TransformerConfig, *, residual_std: float | None, rngs: nnx.Rngs):
        self.activation = config.activation
        embed, mlp = {"embed": config.embed_dim}, {"mlp": config.mlp_size}
        own: dict[str, Any] = {"bias": config.bias, "rngs": rngs, "dtype": config.linear_dtype}
        self.up = Linear(embed, mlp, std=config.init_std, **own)
        self.gate = Linear(embed, mlp, std=config.init_std, **own) if config.gated else None
        self.down = Linear(mlp, embed, std=residual_std, **own)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] gathered over the sequence to [B, T, D] in the residual stream's layout."""
        kind = self.activation
        inner = (*gathered_dims(x_BTD.shape[1])[:2], "mlp")
        up_BTF = self.up(x_BTD, out=inner)
        if self.gate is None:
            hidden_BTF = activate(kind, up_BTF)
        else:
            hidden_BTF = activate(kind, self.gate(x_BTD, out=inner)) * up_BTF
        return self.down(hidden_BTF, out=residual_dims(x_BTD.shape[1]))
