"""`jax.random`'s own numbers, from the same bits, in a quarter of the time on a CPU.

There jax makes them in loops over whole arrays, which goes to memory and back for each of five rounds. Written out,
Threefry (Salmon et al. 2011, section 3; 20 rounds of two words) and what is made of its bits are one pass.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lmkit.nn.forms import one_pass_random

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """float32 from the standard normal distribution."""
    if not _is_ours(key, shape):
        return jax.random.normal(key, shape, jnp.float32)
    return _normal(key, shape)


def bernoulli(key: jax.Array, share: float, shape: tuple[int, ...]) -> jax.Array:
    """bool, true with probability `share`."""
    if not _is_ours(key, shape):
        return jax.random.bernoulli(key, share, shape)
    return _bernoulli(key, share, shape)


# Outside a program each is one of its own; inside one they are part of it.
@partial(jax.jit, static_argnums=1, inline=True)
def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    low = np.nextafter(np.float32(-1), np.float32(0))  # erf_inv(-1) is infinite
    uniform = jnp.maximum(low, _uniform(key, shape) * (np.float32(1) - low) + low)
    return np.float32(math.sqrt(2)) * lax.erf_inv(uniform)


@partial(jax.jit, static_argnums=2, inline=True)
def _bernoulli(key: jax.Array, share: float, shape: tuple[int, ...]) -> jax.Array:
    return _uniform(key, shape) < jnp.float32(share)


def _is_ours(key: jax.Array, shape: tuple[int, ...]) -> bool:
    known = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and str(jax.random.key_impl(key)) == "threefry2x32"
    counted = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]  # else numbers depend on the size
    return one_pass_random() and known and counted and math.prod(shape) < 2**32


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """float32 in [0, 1): 23 bits as the mantissa of a number in [1, 2)."""
    return lax.bitcast_convert_type((_bits(key, shape) >> 9) | jnp.uint32(0x3F800000), jnp.float32) - 1.0


def _bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32: both words that Threefry makes of a number's place in the array, joined."""
    first, second = jax.random.key_data(key)
    keys = (first, second, first ^ second ^ jnp.uint32(_PARITY))
    steps = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    inputs = [lax.broadcasted_iota(jnp.uint32, shape, dim) * jnp.uint32(step) for dim, step in enumerate(steps)]
    a, b = jnp.full(shape, keys[0]), sum(inputs, jnp.zeros(shape, jnp.uint32)) + keys[1]
    for number in range(5):
        for rotation in _ROTATIONS[number % 2]:
            a = a + b
            b = a ^ ((b << rotation) | (b >> (32 - rotation)))
        a = a + keys[(number + 1) % 3]
        b = b + keys[(number + 2) % 3] + jnp.uint32(number + 1)
    return a ^ b
