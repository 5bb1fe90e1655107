"""Self-attention of a decoder block."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.model import GPTConfig, Position
from lmkit.nn.attend import attend
from lmkit.nn.linear import Linear
from lmkit.nn.norm import RMSNorm
from lmkit.nn.position import apply_rope, rope_table

Table = tuple[jax.Array, jax.Array]


class Places(NamedTuple):
    """What a layer must know of its tokens' places; the same for every layer."""

    segment_ids_BT: jax.Array | None
    rope: Table | None  # for layers that see everything
    rope_local: Table | None  # for layers with a window


class Attention(nnx.Module):
    """Projections, optional QK-norm, rotary positions, attention, output projection."""

    def __init__(self, config: GPTConfig, *, residual_std: float | None, rngs: nnx.Rngs):
        self.config = config
        width, size = {"embed": config.embed_dim}, {"head": config.head_size}
        q_heads, kv_heads = {"heads": config.num_heads}, {"kv_heads": config.kv_heads}
        inner = {"std": config.init_std, "bias": config.bias or config.qkv_bias, "rngs": rngs}
        self.q = Linear(width, q_heads | size, **inner)
        self.k = Linear(width, kv_heads | size, **inner)
        self.v = Linear(width, kv_heads | size, **inner)
        self.out = Linear(q_heads | size, width, std=residual_std, bias=config.bias, rngs=rngs)
        norm = {"eps": config.norm_eps, "offset": config.norm_offset}
        self.q_norm = RMSNorm(config.head_size, **norm) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_size, **norm) if config.qk_norm else None

    def __call__(self, x_BTD: jax.Array, places: Places, windowed: jax.Array | bool) -> jax.Array:
        """[B, T, D] gathered over the sequence to [B, T, D] sharded over it. `windowed`: this layer has the window."""
        q_BTNH = self.q(x_BTD, out=("batch", "seq", "heads", "head"))
        k_BSKH = self.k(x_BTD, out=("batch", "seq", "kv_heads", "head"))
        v_BSKH = self.v(x_BTD, out=("batch", "seq", "kv_heads", "head"))
        if self.q_norm is not None and self.k_norm is not None:
            q_BTNH, k_BSKH = self.q_norm(q_BTNH), self.k_norm(k_BSKH)
        if isinstance(windowed, bool):
            y_BTNH = self._mix(q_BTNH, k_BSKH, v_BSKH, places, windowed)
        else:  # kernels need a static window: compile both, run one
            y_BTNH = jax.lax.cond(
                windowed,
                lambda q, k, v: self._mix(q, k, v, places, True),
                lambda q, k, v: self._mix(q, k, v, places, False),
                q_BTNH, k_BSKH, v_BSKH,
            )  # fmt: skip
        return self.out(y_BTNH, out=("batch", "seq_norm", "width"))

    def _mix(self, q: jax.Array, k: jax.Array, v: jax.Array, places: Places, windowed: bool) -> jax.Array:
        config = self.config
        if config.position is Position.rope:
            table = places.rope_local if windowed else places.rope
            assert table is not None
            q, k = apply_rope(q, table), apply_rope(k, table)
        return attend(
            q, k, v, segment_ids_BT=places.segment_ids_BT, causal=True, scale=config.attention_scale,
            window=config.sliding_window if windowed else 0, softcap=config.attention_softcap, kernel=config.attention,
        )  # fmt: skip


def make_places(config: GPTConfig, positions: jax.Array, segment_ids_BT: jax.Array | None) -> Places:
    """Rotary tables for int positions [B or 1, T], once for all layers."""
    rope = rope_local = None
    if config.position is Position.rope:
        rope = rope_table(positions, config.head_size, config.rope_theta)
        local = config.rope_local_theta or config.rope_theta
        rope_local = rope if local == config.rope_theta else rope_table(positions, config.head_size, local)
    return Places(None if segment_ids_BT is None else segment_ids_BT.astype(jnp.int32), rope, rope_local)
