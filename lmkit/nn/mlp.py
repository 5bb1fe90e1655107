"""The feed-forward sub-layer."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.model import Activation, TransformerConfig
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


class MLP(nnx.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) (Shazeer 2020, equation 6) when gated."""

    def __init__(self, config: TransformerConfig, *, residual_std: float | None, rngs: nnx.Rngs):
        self.activation = config.activation
        embed, mlp = {"embed": config.embed_dim}, {"mlp": config.mlp_size}
        inner = {"std": config.init_std, "bias": config.bias, "rngs": rngs}
        self.up = Linear(embed, mlp, **inner)
        self.gate = Linear(embed, mlp, **inner) if config.gated else None
        self.down = Linear(mlp, embed, std=residual_std, bias=config.bias, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] gathered over the sequence to [B, T, D] in the residual stream's layout."""
        activate = ACTIVATIONS[self.activation]
        inner = (*gathered_dims(x_BTD.shape[1])[:2], "mlp")
        up_BTF = self.up(x_BTD, out=inner)
        if self.gate is None:
            hidden_BTF = activate(up_BTF)
        else:
            hidden_BTF = activate(self.gate(x_BTD, out=inner)) * up_BTF
        return self.down(hidden_BTF, out=residual_dims(x_BTD.shape[1]))
