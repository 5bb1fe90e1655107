"""Positions: rotary (with its scalings), fixed sines, and a learned bias by distance."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.sections.families import EncDecConfig
from lmkit.config.sections.model import RopeScaling, TransformerConfig
from lmkit.config.sections.optim import ParamKind
from lmkit.nn.param import param
from lmkit.nn.random import normal
from lmkit.parallel.rules import current_spec, seq_dim

Table = tuple[jax.Array, jax.Array]  # sines and cosines


def rope_table(positions: jax.Array, config: TransformerConfig, *, local: bool = False) -> Table:
    """Sines and cosines for int positions [B or 1, T]: two float32 arrays [B or 1, T, H/2].

    `local` asks for those of layers with a window: their own base wavelength and no scaling (Gemma 3, section 2).
    """
    theta = (config.rope_local_theta if local else 0.0) or config.rope_theta
    inverse = theta ** (-jnp.arange(0, config.head_size, 2, dtype=jnp.float32) / config.head_size)
    if not (local and config.rope_local_theta):
        inverse = scaled_frequencies(inverse, config)
    angle = positions[..., None].astype(jnp.float32) * inverse
    return jnp.sin(angle), jnp.cos(angle)


def scaled_frequencies(inverse: jax.Array, config: TransformerConfig) -> jax.Array:
    """Rotary frequencies [H/2], in radians a position, stretched as `rope_scaling` says."""
    if config.rope_scaling is RopeScaling.linear:
        return inverse / config.rope_factor
    if config.rope_scaling is RopeScaling.llama3:
        periods = config.rope_original_len * inverse / (2 * math.pi)
        auxiliary = (periods - config.rope_low_freq) / (config.rope_high_freq - config.rope_low_freq)
        auxiliary = jnp.clip(auxiliary, 0.0, 1.0)
        return inverse * (auxiliary + (1.0 - auxiliary) / config.rope_factor)
    return inverse


def apply_rope(x_BTNH: jax.Array, table: Table) -> jax.Array:
    """Rotates each head's two halves by its position's angles (Su et al. 2021, section 3.4.2).

    Computed in float32, returned in x's dtype. Halves turn together, as in Llama, rather than even with odd.
    """
    sin, cos = (t[:, :, None, :] for t in table)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


def sinusoids(positions: jax.Array, size: int, *, closed: bool = False) -> jax.Array:
    """Fixed vectors for positions [...]: float32 [..., size], sines in the first half, cosines in the second.

    Wavelengths run from 2 pi towards 10,000 x 2 pi (Vaswani et al. 2017, section 3.5); `closed` reaches it with the
    last one, as tensor2tensor, Whisper and Beyer et al. 2022 do.
    """
    half = size // 2
    exponent = jnp.arange(half, dtype=jnp.float32) / (max(half - 1, 1) if closed else half)
    angle = positions[..., None].astype(jnp.float32) * 10_000.0**-exponent
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def grid_sinusoids(rows: int, size: int) -> jax.Array:
    """Fixed vectors of a square grid, row by row: float32 [rows * rows, size] (Beyer et al. 2022, section 3)."""
    y, x = jnp.divmod(jnp.arange(rows * rows), rows)
    return jnp.concatenate([sinusoids(place, size // 2, closed=True) for place in (x, y)], axis=-1)


class RelativeBias(nnx.Module):
    """A learned bias of the scores by bucketed distance (Raffel et al. 2020, section 2.1), one for all layers.

    Half of the buckets hold one distance each, the rest grow with its logarithm up to the last one.
    """

    def __init__(self, config: EncDecConfig, *, causal: bool, rngs: nnx.Rngs):
        self.buckets, self.max_distance = config.relative_buckets, config.relative_max_distance
        self.causal, shape = causal, (config.relative_buckets, config.num_heads)
        table = (config.init_std or 0.02) * normal(rngs.params(), shape)
        self.table = param(table, ("position", "heads"), ParamKind.embedding)

    def __call__(self, num_queries: int, num_keys: int) -> jax.Array:
        """float32 [N, T, S] to add to the scores."""
        distance_TS = jnp.arange(num_keys)[None, :] - jnp.arange(num_queries)[:, None]
        spec = current_spec((seq_dim(num_queries), None, "heads"))
        bias_TSN = self.table[...].at[self._bucket(distance_TS)].get(out_sharding=spec)
        return bias_TSN.transpose(2, 0, 1)

    def between(self, index_BT: jax.Array, key_index_BX: jax.Array) -> jax.Array:
        """float32 [B, N, T, X] for queries and keys at these inputs of their rows."""
        distance_BTX = key_index_BX[:, None, :] - index_BT[:, :, None]
        spec = current_spec(("batch", None, None, "heads"))
        bias_BTXN = self.table[...].at[self._bucket(distance_BTX)].get(out_sharding=spec)
        return bias_BTXN.transpose(0, 3, 1, 2)

    def _bucket(self, distance: jax.Array) -> jax.Array:
        buckets, first = self.buckets, 0
        if self.causal:
            distance = -jnp.minimum(distance, 0)
        else:
            buckets //= 2
            first, distance = (distance > 0) * buckets, jnp.abs(distance)
        exact = buckets // 2
        ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(self.max_distance / exact)
        far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
        return first + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))
