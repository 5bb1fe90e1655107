"""The result of an objective."""

from collections.abc import Mapping
from typing import NamedTuple

import jax


class Sums(NamedTuple):
    """Sums over the tokens of a batch, all float32 scalars; divide by `weight` for means.

    `loss` is what is minimised (with z-loss, smoothing and the routers' losses), `nll` the plain cross-entropy in nats,
    `correct` the weight of tokens whose most likely prediction is right, `router` the figures of a mixture of experts
    (objectives/router.py), by name.
    """

    loss: jax.Array
    weight: jax.Array
    nll: jax.Array
    correct: jax.Array
    router: Mapping[str, jax.Array] = {}  # a mapping of none, never filled in place
