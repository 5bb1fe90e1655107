"""Decoder-only transformers: GPT-2, GPT-3, Llama, Qwen, Gemma, by configuration alone."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.model import GPTConfig, Position
from lmkit.nn.attention import make_places
from lmkit.nn.block import GATHERED, RESIDUAL, DecoderBlock
from lmkit.nn.dropout import dropout
from lmkit.nn.embed import Embed
from lmkit.nn.norm import build_norm
from lmkit.nn.param import compute_dtype
from lmkit.nn.stack import Stack
from lmkit.parallel.rules import current_spec, reshard


class GPT(nnx.Module):
    """Embedding, a stack of decoder blocks, a norm, and a head that may be the embedding table.

    model = GPT(GPTConfig(vocab_size=256, num_layers=2, num_heads=4, embed_dim=64), rngs=nnx.Rngs(0))
    logits_BTV = model(tokens_BT)
    """

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        if config.vocab_size < 1:
            raise ValueError("GPTConfig.vocab_size=0: give the number of tokens")
        self.config = config
        table = {"size": config.embed_dim, "std": config.init_std, "rngs": rngs}
        self.embed = Embed(config.vocab_size, dim="vocab", **table)
        learned = config.position is Position.learned
        self.position = Embed(config.max_seq_len, dim="position", **table) if learned else None
        self.stack = Stack(
            lambda rngs: DecoderBlock(config, rngs=rngs),
            config.num_layers,
            remat=config.remat,
            scan=config.scan_layers,
            rngs=rngs,
        )
        self.norm = build_norm(
            config.norm, config.embed_dim, eps=config.norm_eps, offset=config.norm_offset, bias=config.bias
        )
        self.head = None if config.tie_embeddings else Embed(config.vocab_size, dim="vocab", **table)

    def hidden(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """int tokens [B, T] to the normed residual stream [B, T, D] in the compute dtype.

        Args:
            segment_ids_BT: int; tokens attend within their own segment (packed documents).
            positions_BT: int; None for 0..T-1 in every row.
            key: switches dropout on.
        """
        config = self.config
        positions = jnp.arange(tokens_BT.shape[1])[None] if positions_BT is None else positions_BT
        x_BTD = self.embed(tokens_BT, compute_dtype(config.dtype), out=RESIDUAL)
        if config.embed_scale:
            x_BTD = x_BTD * jnp.asarray(config.embed_dim**0.5, x_BTD.dtype)
        if self.position is not None:
            dims = (None if positions_BT is None else "batch", *RESIDUAL[1:])
            x_BTD = x_BTD + self.position(positions, x_BTD.dtype, out=dims)
        stack_key = None
        if key is not None:
            embed_key, stack_key = jax.random.split(key)
            x_BTD = dropout(x_BTD, config.dropout, embed_key, RESIDUAL)
        places = make_places(config, positions, segment_ids_BT)
        x_BTD = self.stack(x_BTD, places, flags=_windowed(config), key=stack_key)
        return self.norm(x_BTD)

    def head_VD(self) -> jax.Array:
        """The table that turns hidden states into logits: float32 [V, D]."""
        return (self.embed if self.head is None else self.head).table[...]

    def __call__(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """int tokens [B, T] to float32 logits [B, T, V]. Training goes through `hidden`: it never holds them all."""
        x_BTD = reshard(self.hidden(tokens_BT, segment_ids_BT, positions_BT, key), GATHERED)
        head_VD = self.head_VD().astype(x_BTD.dtype)
        logits_BTV = jnp.einsum(
            "BTD,VD->BTV",
            x_BTD,
            head_VD,
            preferred_element_type=jnp.float32,
            out_sharding=current_spec(("batch", "seq", "vocab")),
        )
        cap = self.config.logit_softcap
        return cap * jnp.tanh(logits_BTV / cap) if cap else logits_BTV


def _windowed(config: GPTConfig) -> bool | jax.Array:
    """Whether each layer has the window: one bool where all agree, else bool [L]."""
    each = [config.window_of(layer) > 0 for layer in range(config.num_layers)]
    return each[0] if len(set(each)) == 1 else jnp.array(each)
