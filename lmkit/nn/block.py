"""The blocks that stacks are made of: attention and MLP, each joined to the residual stream."""

import importlib
from collections.abc import Callable

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lmkit.config.base import ConfigError
from lmkit.config.sections.model import NormOrder, ResidualInit, TransformerConfig
from lmkit.nn.attention import Attention, CrossAttention, LayerInputs
from lmkit.nn.dropout import dropout
from lmkit.nn.mlp import MLP
from lmkit.nn.moe import MoE
from lmkit.nn.norm import stream_norm
from lmkit.parallel.rules import gathered_dims, reshard, residual_dims


class ResidualBranch(nnx.Module):
    """How a sub-layer f joins the stream: x + f(norm(x)), norm(x + f(x)), or x + norm(f(norm(x)))."""

    def __init__(self, config: TransformerConfig, *, normed: bool = True):
        self.order, self.dropout = config.norm_order, config.dropout
        self.norm = stream_norm(config) if normed else None
        self.post_norm = stream_norm(config) if config.norm_order is NormOrder.both else None

    def __call__(
        self, x_BTD: jax.Array, f: Callable, name: str, key: jax.Array | None, rows_B: jax.Array | None = None
    ) -> jax.Array:
        """[B, T, D] to [B, T, D] in the stream's layout; `name` is what remat policies know f's result by.

        key, rows_B: as in `dropout`.
        """
        late = self.order is NormOrder.post
        y_BTD = x_BTD if late or self.norm is None else self.norm(x_BTD)
        y_BTD = checkpoint_name(f(reshard(y_BTD, gathered_dims(x_BTD.shape[1]))), name)
        y_BTD = y_BTD if self.post_norm is None else self.post_norm(y_BTD)
        x_BTD = x_BTD + dropout(y_BTD, self.dropout, key, residual_dims(x_BTD.shape[1]), rows_B)
        return self.norm(x_BTD) if late and self.norm is not None else x_BTD


class Block(nnx.Module):
    """Self-attention, then the MLP or a mixture of experts.

    Args:
        causal: nobody sees the future.
        normed: False leaves out attention's norm, where the stream has just been normalised.
    """

    def __init__(self, config: TransformerConfig, *, causal: bool, normed: bool = True, rngs: nnx.Rngs):
        std = residual_std(config)
        self.attention = Attention(config, causal=causal, residual_std=std, rngs=rngs)
        self.mlp = (MoE if config.num_experts else MLP)(config, residual_std=std, rngs=rngs)
        self.attention_join, self.mlp_join = ResidualBranch(config, normed=normed), ResidualBranch(config)

    def __call__(
        self, x_BTD: jax.Array, inputs: LayerInputs, windowed: jax.Array | bool, key: jax.Array | None
    ) -> jax.Array:
        """[B, T, D] to [B, T, D]. `windowed`: this layer has the window. `key` switches dropout on."""
        keys, rows_B = (None, None) if key is None else jax.random.split(key), inputs.rows_B
        x_BTD = self.attention_join(x_BTD, lambda y: self.attention(y, inputs, windowed), "attention", keys[0], rows_B)
        return self.mlp_join(x_BTD, self._mlp(inputs), "mlp", keys[1], rows_B)

    def _mlp(self, inputs: LayerInputs) -> Callable[[jax.Array], jax.Array]:
        mlp = self.mlp
        return (lambda y: mlp(y, inputs)) if isinstance(mlp, MoE) else mlp


class CrossBlock(Block):
    """A block that looks at inputs.memory_BSD between its two sub-layers: an encoder-decoder's decoder."""

    def __init__(self, config: TransformerConfig, *, causal: bool, rngs: nnx.Rngs):
        super().__init__(config, causal=causal, rngs=rngs)
        self.cross = CrossAttention(config, residual_std=residual_std(config), rngs=rngs)
        self.cross_join = ResidualBranch(config)

    def __call__(
        self, x_BTD: jax.Array, inputs: LayerInputs, windowed: jax.Array | bool, key: jax.Array | None
    ) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        keys, rows_B = (None, None, None) if key is None else jax.random.split(key, 3), inputs.rows_B
        x_BTD = self.attention_join(x_BTD, lambda y: self.attention(y, inputs, windowed), "attention", keys[0], rows_B)
        x_BTD = self.cross_join(x_BTD, lambda y: self.cross(y, inputs), "cross", keys[2], rows_B)
        return self.mlp_join(x_BTD, self._mlp(inputs), "mlp", keys[1], rows_B)


def load_block(config: TransformerConfig) -> Callable[..., nnx.Module]:
    """The class that `model.block` names, Block where it names none."""
    if not config.block:
        return Block
    module, _, name = config.block.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"model.block={config.block}: {error}; it must be module:Class, importable from here"
        ) from error


def residual_std(config: TransformerConfig) -> float | None:
    """Standard deviation of projections into the residual stream; None for zero."""
    if config.residual_init is ResidualInit.zero:
        return None
    if config.residual_init is ResidualInit.plain:
        return config.init_std
    return (config.init_std or config.embed_dim**-0.5) / (2 * config.num_layers) ** 0.5
