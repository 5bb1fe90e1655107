"""Dropout that gives the same mask on every mesh."""

import jax
import jax.numpy as jnp

from lmkit.parallel.rules import Dims, current_spec


def dropout(x: jax.Array, rate: float, key: jax.Array | None, dims: Dims) -> jax.Array:
    """Zeroes a share `rate` of x and scales the rest up (Srivastava et al. 2014, section 10). No key: unchanged."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape, out_sharding=current_spec(dims))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
