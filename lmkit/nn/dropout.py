"""Dropout that gives the same mask on every mesh, and to a row in every micro-batch."""

from functools import partial

import jax
import jax.numpy as jnp

from lmkit.nn.random import bernoulli
from lmkit.parallel.rules import Dims, current_spec, on_each_device, reshard, row_numbers


def dropout(
    x_BTD: jax.Array, rate: float, key: jax.Array | None, dims: Dims, rows_B: jax.Array | None = None
) -> jax.Array:
    """Zeroes a share `rate` of x and scales the rest up (Srivastava et al. 2014, section 10). No key: unchanged.

    The mask of a token is a function of the key, its row's number and its place. rows_B: those numbers, laid out over
    the batch; None for 0..B-1.
    """
    if key is None or rate == 0.0:
        return x_BTD
    batch, seq, width = x_BTD.shape
    rows_B = row_numbers(batch) if rows_B is None else rows_B
    keep = partial(_keep, rate=rate, width=width)
    if (spec := current_spec(dims)) is not None:
        parts = [current_spec((dim,)) for dim in dims[:2]]
        keep = on_each_device(keep, (jax.sharding.PartitionSpec(), *parts), spec)
    keep_BTD = keep(key, rows_B, reshard(jnp.arange(seq), dims[1:2]))
    return jnp.where(keep_BTD, x_BTD / (1.0 - rate), jnp.zeros_like(x_BTD))


def _keep(key: jax.Array, rows_B: jax.Array, places_T: jax.Array, *, rate: float, width: int) -> jax.Array:
    """bool [B, T, D]."""

    def token(row_key: jax.Array, place: jax.Array) -> jax.Array:
        return bernoulli(jax.random.fold_in(row_key, place), 1.0 - rate, (width,))

    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)
    return jax.vmap(jax.vmap(token, (None, 0)), (0, None))(row_keys_B, places_T)
