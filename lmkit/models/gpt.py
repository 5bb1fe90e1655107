"""Decoder-only transformers: GPT-2, GPT-3, Llama, Qwen, Gemma, Mixtral, by configuration alone."""

import jax
from flax import nnx

from lmkit.config.sections.families import GPTConfig
from lmkit.nn.attention import make_layer_inputs, windowed_layers
from lmkit.nn.block import load_block
from lmkit.nn.cache import Cache, check_step, empty_cache, extended, next_step
from lmkit.nn.check import check_tokens
from lmkit.nn.embed import Embed, StreamInput, default_positions, vocabulary_logits
from lmkit.nn.norm import stream_norm
from lmkit.nn.param import compute_dtype
from lmkit.nn.stack import Stack
from lmkit.parallel.rules import residual_dims


class GPT(nnx.Module):
    """Embedding, a stack of decoder blocks, a norm, and a head that may be the embedding table.

    model = GPT(GPTConfig(vocab_size=256, num_layers=2, num_heads=4, embed_dim=64), rngs=nnx.Rngs(0))
    logits_BTV = model(tokens_BT)
    """

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        self.config = config
        table = {"size": config.embed_dim, "dim": "vocab", "std": config.init_std, "rngs": rngs}
        self.embed = Embed(config.vocab_size, **table)
        self.input = StreamInput(config, length=config.max_seq_len, scaled=config.embed_scale, rngs=rngs)
        make_block = load_block(config)
        self.stack = Stack(lambda rngs: make_block(config, causal=True, rngs=rngs), config, rngs=rngs)
        self.norm = stream_norm(config)
        self.head = None if config.tie_embeddings else Embed(config.vocab_size, **table)

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

        Raises ConfigError for another shape or dtype.
        """
        check_tokens(tokens_BT, key, segment_ids_BT=segment_ids_BT, positions_BT=positions_BT)
        config = self.config
        input_key, stack_key = (None, None) if key is None else jax.random.split(key)
        x_BTD = self.embed(tokens_BT, compute_dtype(config.dtype), out=residual_dims(tokens_BT.shape[1]))
        x_BTD = self.input(x_BTD, positions_BT, key=input_key)
        inputs = make_layer_inputs(config, default_positions(tokens_BT, positions_BT), segment_ids_BT)
        return self.norm(self.stack(x_BTD, inputs, flags=windowed_layers(config), key=stack_key))

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for rows of up to `length` tokens."""
        return empty_cache(self.config, self.config.num_layers, batch, length)

    def extend(
        self,
        tokens_BT: jax.Array,
        num_new_B: jax.Array,
        cache: Cache,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        *,
        empty: bool = False,
    ) -> tuple[jax.Array, Cache]:
        """The next tokens of each row to what `hidden` would give for them [B, T, D], and the cache that holds them.

        Args:
            num_new_B: int; so many of them are real, the rest is padding.
            segment_ids_BT, positions_BT: as in `hidden`; None: they go on from each row's last token.
            empty: the cache is a fresh one: a prompt takes the same kernels as training.
        """
        config = self.config
        check_tokens(tokens_BT, segment_ids_BT=segment_ids_BT, positions_BT=positions_BT)
        check_step(config, config.num_layers, tokens_BT, num_new_B, cache)
        step = next_step(cache, tokens_BT.shape[1], config.sliding_window, segment_ids_BT, positions_BT, empty=empty)
        x_BTD = self.embed(tokens_BT, compute_dtype(config.dtype), out=residual_dims(tokens_BT.shape[1]))
        x_BTD = self.input(x_BTD, step.positions_BT)
        inputs = make_layer_inputs(config, step.positions_BT, segment_ids_BT)._replace(layer_cache=step.layer_cache)
        x_BTD, new = self.stack.extend(x_BTD, inputs, cache, flags=windowed_layers(config))
        return self.norm(x_BTD), extended(cache, new, step, num_new_B)

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
        return self.logits(self.hidden(tokens_BT, segment_ids_BT, positions_BT, key))

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """What `hidden` or `extend` gave to float32 logits [B, T, V]."""
        return vocabulary_logits(hidden_BTD, self.head_VD(), softcap=self.config.logit_softcap)
