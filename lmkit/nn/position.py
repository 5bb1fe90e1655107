"""Rotary positions (Su et al. 2021, section 3.4.2), halves rotated together as in Llama."""

import jax
import jax.numpy as jnp


def rope_table(positions: jax.Array, head_size: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Sines and cosines for int positions [B or 1, T]: two float32 arrays [B or 1, T, H/2]."""
    inverse = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angle = positions[..., None].astype(jnp.float32) * inverse
    return jnp.sin(angle), jnp.cos(angle)


def apply_rope(x_BTNH: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each head's two halves by its position's angles; computed in float32, returned in x's dtype."""
    sin, cos = (t[:, :, None, :] for t in table)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)
