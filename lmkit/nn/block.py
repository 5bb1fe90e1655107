"""The decoder block: attention and MLP, each normalised on the way in."""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lmkit.config.model import GPTConfig, ResidualInit
from lmkit.nn.attention import Attention, Places
from lmkit.nn.dropout import dropout
from lmkit.nn.mlp import MLP
from lmkit.nn.norm import build_norm
from lmkit.parallel.rules import reshard

RESIDUAL = ("batch", "seq_norm", "width")  # between blocks: the sequence is split over `tensor` too
GATHERED = ("batch", "seq", "width")  # inside a sub-layer: heads or mlp are split instead


class DecoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); `post_norm` normalises what is added, too."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        self.config = config
        residual_std = _residual_std(config)
        norms = {
            "kind": config.norm, "size": config.embed_dim, "eps": config.norm_eps, "offset": config.norm_offset,
            "bias": config.bias,
        }  # fmt: skip
        self.attention_norm = build_norm(**norms)
        self.attention = Attention(config, residual_std=residual_std, rngs=rngs)
        self.mlp_norm = build_norm(**norms)
        self.mlp = MLP(
            config.embed_dim, config.mlp_size, activation=config.activation, gated=config.gated, bias=config.bias,
            std=config.init_std, residual_std=residual_std, rngs=rngs,
        )  # fmt: skip
        self.attention_post_norm = build_norm(**norms) if config.post_norm else None
        self.mlp_post_norm = build_norm(**norms) if config.post_norm else None

    def __call__(
        self, x_BTD: jax.Array, places: Places, windowed: jax.Array | bool, key: jax.Array | None
    ) -> jax.Array:
        """[B, T, D] to [B, T, D]. `key` switches dropout on."""
        keys = (None, None) if key is None else jax.random.split(key)
        y = self.attention(reshard(self.attention_norm(x_BTD), GATHERED), places, windowed)
        y = checkpoint_name(y, "attention")
        y = y if self.attention_post_norm is None else self.attention_post_norm(y)
        x_BTD = x_BTD + dropout(y, self.config.dropout, keys[0], RESIDUAL)
        y = checkpoint_name(self.mlp(reshard(self.mlp_norm(x_BTD), GATHERED)), "mlp")
        y = y if self.mlp_post_norm is None else self.mlp_post_norm(y)
        return x_BTD + dropout(y, self.config.dropout, keys[1], RESIDUAL)


def _residual_std(config: GPTConfig) -> float | None:
    """Standard deviation of projections into the residual stream; None for zero."""
    if config.residual_init is ResidualInit.zero:
        return None
    if config.residual_init is ResidualInit.plain:
        return config.init_std
    return (config.init_std or config.embed_dim**-0.5) / (2 * config.num_layers) ** 0.5
