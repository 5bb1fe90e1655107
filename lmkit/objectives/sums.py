"""The result of an objective."""

from typing import NamedTuple

import jax


class Sums(NamedTuple):
    """Sums over the tokens of a batch, all float32 scalars; divide by `weight` for means.

    `loss` is what is minimised (with z-loss and smoothing), `nll` the plain cross-entropy in nats,
    `correct` the weight of tokens whose most likely prediction is right.
    """

    loss: jax.Array
    weight: jax.Array
    nll: jax.Array
    correct: jax.Array
