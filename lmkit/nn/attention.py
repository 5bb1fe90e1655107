"""Attention of a block: to its own sequence, and to another one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.sections.model import Kernel, Position, TransformerConfig
from lmkit.nn.attend import attend
from lmkit.nn.cache import LayerCache, attend_cached
from lmkit.nn.linear import Linear
from lmkit.nn.norm import RMSNorm
from lmkit.nn.position import Table, apply_rope, rope_table
from lmkit.parallel.rules import in_pipeline, residual_dims, seq_dim, split_axes


class LayerInputs(NamedTuple):
    """What a layer must know beside the stream; the same for every layer."""

    segment_ids_BT: jax.Array | None = None
    rope: Table | None = None  # for layers that see everything
    rope_local: Table | None = None  # for layers with a window
    bias_NTS: jax.Array | None = None  # of the scores
    memory_BSD: jax.Array | None = None  # what cross-attention looks at
    memory_ids_BS: jax.Array | None = None  # its segments
    layer_cache: LayerCache | None = None  # while decoding: the layer's share of the cache
    auxiliary: dict[str, jax.Array] | None = None  # sums over tokens, filled by the layer while it is traced
    rows_B: jax.Array | None = None  # their numbers in the batch, where they are only some of it


class Attention(nnx.Module):
    """Projections, optional QK-norm, rotary positions, attention, output projection."""

    def __init__(
        self, config: TransformerConfig, *, causal: bool, residual_std: float | None, rngs: nnx.Rngs
    ):  # fmt: skip
        self.config, self.causal = config, causal
        width, size = {"embed": config.embed_dim}, {"head": config.head_size}
        q_heads, kv_heads = {"heads": config.num_heads}, {"kv_heads": config.kv_heads}
        own: dict[str, Any] = {"rngs": rngs, "dtype": config.linear_dtype}
        inner: dict[str, Any] = own | {"std": config.init_std}
        bias = config.bias or config.qkv_bias
        self.q = Linear(width, q_heads | size, bias=bias, **inner)
        self.k = Linear(width, kv_heads | size, bias=bias and config.key_bias, **inner)
        self.v = Linear(width, kv_heads | size, bias=bias, **inner)
        self.out = Linear(q_heads | size, width, std=residual_std, bias=config.bias, **own)
        norm = {"eps": config.norm_eps, "offset": config.norm_offset}
        self.q_norm = RMSNorm(config.head_size, **norm) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_size, **norm) if config.qk_norm else None

    def __call__(self, x_BTD: jax.Array, inputs: LayerInputs, windowed: jax.Array | bool = False) -> jax.Array:
        """[B, T, D] gathered over the sequence to [B, T, D] in the residual stream's layout.

        `windowed`: this layer has the window.
        """
        q_BTNH, k_BSKH, v_BSKH = self._project(x_BTD, x_BTD)
        if inputs.layer_cache is not None:
            y_BTNH = self._extend(q_BTNH, k_BSKH, v_BSKH, inputs, windowed)
        elif isinstance(windowed, bool):
            y_BTNH = self._mix(q_BTNH, k_BSKH, v_BSKH, inputs, windowed)
        elif in_pipeline() and "context" in split_axes():
            # Another stage's layer may be of the other kind; collectives in a branch would wait for its devices.
            both = (self._mix(q_BTNH, k_BSKH, v_BSKH, inputs, kind) for kind in (True, False))
            y_BTNH = jnp.where(windowed, *both)
        else:  # kernels need a static window: compile both, run one
            y_BTNH = jax.lax.cond(
                windowed,
                lambda q, k, v: self._mix(q, k, v, inputs, True),
                lambda q, k, v: self._mix(q, k, v, inputs, False),
                q_BTNH, k_BSKH, v_BSKH,
            )  # fmt: skip
        return self.out(y_BTNH, out=residual_dims(x_BTD.shape[1]))

    def _project(self, x_BTD: jax.Array, memory_BSD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q_BTNH = self._queries(x_BTD)
        out = ("batch", seq_dim(memory_BSD.shape[1]), "kv_heads", "head")
        k_BSKH, v_BSKH = self.k(memory_BSD, out=out), self.v(memory_BSD, out=out)
        return q_BTNH, k_BSKH if self.k_norm is None else self.k_norm(k_BSKH), v_BSKH

    def _queries(self, x_BTD: jax.Array) -> jax.Array:
        q_BTNH = self.q(x_BTD, out=("batch", seq_dim(x_BTD.shape[1]), "heads", "head"))
        return q_BTNH if self.q_norm is None else self.q_norm(q_BTNH)

    def _mix(self, q: jax.Array, k: jax.Array, v: jax.Array, inputs: LayerInputs, windowed: bool) -> jax.Array:
        if self.config.position is Position.rope:
            table = inputs.rope_local if windowed else inputs.rope
            assert table is not None
            q, k = apply_rope(q, table), apply_rope(k, table)
        return self._attend(q, k, v, inputs, windowed)

    def _extend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, inputs: LayerInputs, windowed: jax.Array | bool
    ) -> jax.Array:
        """New tokens after those of the cache; their keys and values go to `inputs.layer_cache.new`."""
        layer_cache, config = inputs.layer_cache, self.config
        assert layer_cache is not None
        assert layer_cache.new is not None
        if config.position is Position.rope:
            assert inputs.rope is not None
            assert inputs.rope_local is not None
            tables = zip(inputs.rope_local, inputs.rope, strict=True)
            sin, cos = (_choose(windowed, local, everywhere) for local, everywhere in tables)
            q, k = apply_rope(q, (sin, cos)), apply_rope(k, (sin, cos))
        assert "self" not in layer_cache.new, "a block with two attentions to its own sequence has no cache"
        layer_cache.new["self"] = (k, v)
        if layer_cache.visible_BTX is not None and layer_cache.visible_local_BTX is not None:
            visible_BTX = _choose(windowed, layer_cache.visible_local_BTX, layer_cache.visible_BTX)
            return attend_cached(
                q, k, v, layer_cache, visible_BTX, scale=config.attention_scale, softcap=config.attention_softcap
            )
        if isinstance(windowed, bool):
            return self._attend(q, k, v, inputs, windowed)
        return jax.lax.cond(
            windowed,
            lambda q, k, v: self._attend(q, k, v, inputs, True),
            lambda q, k, v: self._attend(q, k, v, inputs, False),
            q, k, v,
        )  # fmt: skip

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, inputs: LayerInputs, windowed: bool) -> jax.Array:
        config, ids = self.config, inputs.segment_ids_BT
        return attend(
            q, k, v, segments=None if ids is None else (ids, ids), bias_NTS=inputs.bias_NTS, causal=self.causal,
            scale=config.attention_scale, window=config.sliding_window if windowed else 0,
            softcap=config.attention_softcap, kernel=config.attention, context=config.context_attention,
        )  # fmt: skip


class CrossAttention(Attention):
    """Queries from the stream, keys and values from another sequence (Vaswani et al. 2017, section 3.2.3)."""

    def __init__(self, config: TransformerConfig, *, residual_std: float | None, rngs: nnx.Rngs):
        super().__init__(config, causal=False, residual_std=residual_std, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, inputs: LayerInputs, windowed: jax.Array | bool = False) -> jax.Array:
        """[B, T, D], with inputs.memory_BSD gathered over its sequence, to [B, T, D]."""
        config, ids, memory_ids, layer_cache = (
            self.config,
            inputs.segment_ids_BT,
            inputs.memory_ids_BS,
            inputs.layer_cache,
        )
        kernel = config.attention
        if layer_cache is not None and layer_cache.cross is not None:
            q_BTNH, (k_BSKH, v_BSKH), kernel = (
                self._queries(x_BTD),
                layer_cache.cross,
                Kernel.xla,
            )  # too few for the others
        else:
            assert inputs.memory_BSD is not None, "nothing to look at"
            q_BTNH, k_BSKH, v_BSKH = self._project(x_BTD, inputs.memory_BSD)
            if layer_cache is not None and layer_cache.new is not None:
                layer_cache.new["cross"] = (k_BSKH, v_BSKH)
        y_BTNH = attend(
            q_BTNH, k_BSKH, v_BSKH, segments=None if ids is None or memory_ids is None else (ids, memory_ids),
            causal=False, scale=config.attention_scale, softcap=config.attention_softcap, kernel=kernel,
            context=config.context_attention,
        )  # fmt: skip
        return self.out(y_BTNH, out=residual_dims(x_BTD.shape[1]))


def _choose(windowed: jax.Array | bool, local: jax.Array, everywhere: jax.Array) -> jax.Array:
    if isinstance(windowed, bool):
        return local if windowed else everywhere
    return jnp.where(windowed, local, everywhere)


def make_layer_inputs(config: TransformerConfig, positions: jax.Array, segment_ids_BT: jax.Array | None) -> LayerInputs:
    """Rotary tables for int positions [B or 1, T], once for all layers, and the segments."""
    rope = rope_local = None
    if config.position is Position.rope:
        rope = rope_table(positions, config)
        rope_local = rope_table(positions, config, local=True) if config.rope_local_theta else rope
    return LayerInputs(None if segment_ids_BT is None else segment_ids_BT.astype(jnp.int32), rope, rope_local)


def windowed_layers(config: TransformerConfig, first: int = 0) -> bool | jax.Array:
    """Whether each layer from `first` on has the window: one bool where all agree, else bool [L - first]."""
    each = [config.window_of(layer) > 0 for layer in range(first, config.num_layers)]
    return each[0] if len(set(each)) == 1 else jnp.array(each)
