"""Encoder and decoder: the original Transformer, T5, BART, Whisper, by configuration alone."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.sections.families import EncDecConfig
from lmkit.config.sections.model import NormOrder, Position
from lmkit.config.sections.optim import ParamKind
from lmkit.nn.attention import LayerInputs, make_layer_inputs
from lmkit.nn.block import CrossBlock, load_block
from lmkit.nn.cache import Cache, check_step, empty_cache, extended, next_step
from lmkit.nn.check import check_like, check_memory, check_tokens
from lmkit.nn.embed import Embed, StreamInput, default_positions, positions_in_segments, vocabulary_logits
from lmkit.nn.frontend import AudioFrontend
from lmkit.nn.norm import stream_norm
from lmkit.nn.param import compute_dtype, param
from lmkit.nn.position import RelativeBias
from lmkit.nn.stack import Stack
from lmkit.parallel.rules import gathered_dims, reshard, residual_dims


class Memory(NamedTuple):
    """An encoded source: what the decoder looks at."""

    hidden_BSD: jax.Array
    segment_ids_BS: jax.Array | None


class EncDec(nnx.Module):
    """An encoder of tokens or of log-mel frames, and a decoder that looks at its output.

    model = EncDec(EncDecConfig(vocab_size=256, num_layers=2, num_heads=4, embed_dim=64), rngs=nnx.Rngs(0))
    logits_BTV = model(source_BS, tokens_BT)
    """

    def __init__(self, config: EncDecConfig, *, rngs: nnx.Rngs):
        self.config = config
        table = {"size": config.embed_dim, "dim": "vocab", "std": config.init_std, "rngs": rngs}
        self.embed = Embed(config.vocab_size, **table)
        self.frontend = AudioFrontend(config, rngs=rngs) if config.num_mels else None
        self.encoder = Half(_encoder_config(config), length=config.source_len, decoder=False, rngs=rngs)
        decoder = dataclasses.replace(config, num_layers=config.decoder_layers)
        self.decoder = Half(decoder, length=config.max_seq_len, decoder=True, rngs=rngs)
        self.head = None if config.tie_embeddings else Embed(config.vocab_size, **table)
        self.bias = param(jnp.zeros(config.vocab_size), ("vocab",), ParamKind.vector) if config.head_bias else None

    def encode(
        self, source: jax.Array, segment_ids_BS: jax.Array | None = None, key: jax.Array | None = None
    ) -> Memory:
        """int tokens [B, S], or float log-mel frames [B, 2 S, mels], to what the decoder looks at, [B, S, D].

        segment_ids_BS: int; tokens attend within their own, and each begins at position 0: packed sources, and padding
        as one of its own. Raises ConfigError for another shape or dtype.
        """
        dtype = compute_dtype(self.config.dtype)
        if self.frontend is not None:
            x_BSD = self.frontend(source, dtype)
        else:
            check_tokens(source, name="source")
            x_BSD = self.embed(source, dtype, out=residual_dims(source.shape[1]))
        check_like(x_BSD.shape[:2], "the encoder's inputs are", key, segment_ids_BS=segment_ids_BS)
        hidden_BSD = self.encoder(x_BSD, Memory(x_BSD, segment_ids_BS), segment_ids_BS, None, key)
        return Memory(reshard(hidden_BSD, gathered_dims(hidden_BSD.shape[1])), segment_ids_BS)

    def decode(
        self,
        memory: Memory,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """int tokens [B, T] to what the logits are made of, [B, T, D]."""
        check_tokens(tokens_BT, key, segment_ids_BT=segment_ids_BT, positions_BT=positions_BT)
        check_memory(memory, tokens_BT.shape[0], self.config.embed_dim)
        x_BTD = self.embed(tokens_BT, compute_dtype(self.config.dtype), out=residual_dims(tokens_BT.shape[1]))
        x_BTD = self.decoder(x_BTD, memory, segment_ids_BT, positions_BT, key)
        return x_BTD * jnp.asarray(self.config.head_scale, x_BTD.dtype)

    def hidden(
        self,
        source: jax.Array,
        tokens_BT: jax.Array,
        source_segment_ids_BS: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """`encode`, then `decode`: [B, T, D]. Where both have segments, a token sees the source of its own."""
        check_tokens(tokens_BT, key, segment_ids_BT=segment_ids_BT)
        keys = (None, None) if key is None else jax.random.split(key)
        memory = self.encode(source, source_segment_ids_BS, keys[0])
        if source_segment_ids_BS is not None and segment_ids_BT is None:
            segment_ids_BT = jnp.ones_like(tokens_BT)
        return self.decode(memory, tokens_BT, segment_ids_BT, None, keys[1])

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for targets of up to `length` tokens."""
        return empty_cache(self.decoder.config, self.config.decoder_layers, batch, length)

    def extend(
        self,
        tokens_BT: jax.Array,
        num_new_B: jax.Array,
        cache: Cache,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        *,
        memory: Memory | None = None,
    ) -> tuple[jax.Array, Cache]:
        """The next tokens of each row to what `hidden` would give for them [B, T, D], and the cache that holds them.

        num_new_B, segment_ids_BT, positions_BT: as in GPT.extend. memory: what `encode` gave; with the first tokens,
        into a fresh cache, and only then.
        """
        check_tokens(tokens_BT, segment_ids_BT=segment_ids_BT, positions_BT=positions_BT)
        check_step(self.config, self.config.decoder_layers, tokens_BT, num_new_B, cache)
        check_memory(memory, tokens_BT.shape[0], self.config.embed_dim, cache.cross is None)
        x_BTD = self.embed(tokens_BT, compute_dtype(self.config.dtype), out=residual_dims(tokens_BT.shape[1]))
        x_BTD, cache = self.decoder.extend(x_BTD, num_new_B, cache, memory, segment_ids_BT, positions_BT)
        return x_BTD * jnp.asarray(self.config.head_scale, x_BTD.dtype), cache

    def head_VD(self) -> jax.Array:
        """The table that turns `hidden` into logits: float32 [V, D]."""
        return (self.embed if self.head is None else self.head).table[...]

    def head_bias_V(self) -> jax.Array | None:
        """The bias of those logits: float32 [V], or None."""
        return None if self.bias is None else self.bias[...]

    def __call__(self, source, tokens_BT, source_segment_ids_BS=None, segment_ids_BT=None, key=None) -> jax.Array:
        """float32 logits [B, T, V]; arguments as in `hidden`."""
        return self.logits(self.hidden(source, tokens_BT, source_segment_ids_BS, segment_ids_BT, key))

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """What `hidden` or `extend` gave to float32 logits [B, T, V]."""
        return vocabulary_logits(hidden_BTD, self.head_VD(), self.head_bias_V())


class Half(nnx.Module):
    """The encoder or the decoder: positions, a stack, and with norm_order=pre a last norm."""

    def __init__(self, config: EncDecConfig, *, length: int, decoder: bool, rngs: nnx.Rngs):
        self.config = config
        self.input = StreamInput(
            config, length=length, offset=config.position_offset, scaled=config.embed_scale,
            normed=config.embed_norm, closed=bool(config.num_mels), rngs=rngs,
        )  # fmt: skip
        relative = config.position is Position.relative
        self.bias = RelativeBias(config, causal=decoder, rngs=rngs) if relative else None
        make_block = CrossBlock if decoder else load_block(config)
        self.stack = Stack(lambda rngs: make_block(config, causal=decoder, rngs=rngs), config, rngs=rngs)
        self.norm = None if config.norm_order is NormOrder.post else stream_norm(config)

    def __call__(self, x_BTD, memory: Memory, segment_ids_BT, positions_BT, key) -> jax.Array:
        """[B, T, D] to [B, T, D] in the residual stream's layout."""
        keys = (None, None) if key is None else jax.random.split(key)
        seq = x_BTD.shape[1]
        if positions_BT is None and segment_ids_BT is not None:
            positions_BT = positions_in_segments(segment_ids_BT)
        x_BTD = self.input(x_BTD, positions_BT, key=keys[0])
        inputs: LayerInputs = make_layer_inputs(self.config, default_positions(x_BTD, positions_BT), segment_ids_BT)
        inputs = inputs._replace(
            bias_NTS=None if self.bias is None else self.bias(seq, seq),
            memory_BSD=memory.hidden_BSD, memory_ids_BS=memory.segment_ids_BS,
        )  # fmt: skip
        x_BTD = self.stack(x_BTD, inputs, flags=False, key=keys[1])
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def extend(
        self, x_BTD, num_new_B, cache: Cache, memory: Memory | None, segment_ids_BT, positions_BT
    ) -> tuple[jax.Array, Cache]:
        """[B, T, D] after the tokens of the cache to [B, T, D], and the cache with them; see EncDec.extend."""
        seq, first = x_BTD.shape[1], memory is not None
        if positions_BT is None and segment_ids_BT is not None and first:
            positions_BT = positions_in_segments(segment_ids_BT)
        step = next_step(cache, seq, 0, segment_ids_BT, positions_BT, empty=first)
        memory_ids_BM = memory.segment_ids_BS if memory else cache.cross and cache.cross.segment_ids_BM
        inputs = make_layer_inputs(self.config, step.positions_BT, step.segment_ids_BT)._replace(
            layer_cache=step.layer_cache, memory_BSD=memory and memory.hidden_BSD, memory_ids_BS=memory_ids_BM
        )
        if self.bias is not None and first:
            inputs = inputs._replace(bias_NTS=self.bias(seq, seq))
        elif self.bias is not None:
            bias_BNTX = self.bias.between(step.index_BT, step.key_index_BX)
            inputs = inputs._replace(layer_cache=step.layer_cache._replace(bias_BNTX=bias_BNTX))
        x_BTD, new = self.stack.extend(self.input(x_BTD, step.positions_BT), inputs, cache, flags=False)
        x_BTD = x_BTD if self.norm is None else self.norm(x_BTD)
        return x_BTD, extended(cache, new, step, num_new_B, memory_ids_BM)


def _encoder_config(config: EncDecConfig) -> EncDecConfig:
    """An audio encoder's positions are fixed (Radford et al. 2022, section 2.2)."""
    return dataclasses.replace(config, position=Position.sinusoidal) if config.num_mels else config
