"""The feed-forward sub-layer."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.model import Activation
from lmkit.nn.linear import Linear

ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    Activation.gelu: partial(jax.nn.gelu, approximate=False),
    Activation.gelu_tanh: partial(jax.nn.gelu, approximate=True),
    Activation.silu: jax.nn.silu,
    Activation.relu: jax.nn.relu,
    Activation.relu2: lambda x: jnp.square(jax.nn.relu(x)),
}


class MLP(nnx.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) (Shazeer 2020, equation 6) when gated."""

    def __init__(
        self,
        embed: int,
        mlp: int,
        *,
        activation: Activation,
        gated: bool,
        bias: bool,
        std: float,
        residual_std: float | None,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        inner = {"std": std, "bias": bias, "rngs": rngs}
        self.up = Linear({"embed": embed}, {"mlp": mlp}, **inner)
        self.gate = Linear({"embed": embed}, {"mlp": mlp}, **inner) if gated else None
        self.down = Linear({"mlp": mlp}, {"embed": embed}, std=residual_std, bias=bias, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] gathered over the sequence to [B, T, D] sharded over it."""
        activate = ACTIVATIONS[self.activation]
        up_BTF = self.up(x_BTD, out=("batch", "seq", "mlp"))
        if self.gate is None:
            hidden_BTF = activate(up_BTF)
        else:
            hidden_BTF = activate(self.gate(x_BTD, out=("batch", "seq", "mlp"))) * up_BTF
        return self.down(hidden_BTF, out=("batch", "seq_norm", "width"))
