"""Attention of one new token to cached ones on one CPU, where the time is that of reading the cache.

B rows, S slots, K key heads, G query heads for each, H numbers a head, N = 16 of them.

XLA's CPU library multiplies matrices that lie in memory one after the other. Keys of one head do not: it writes them
anew, transposed, at 3 GB/s. Loops of XLA's own read them where they are (nn/turned.py does so with weights): two to
five times as fast as the library, by how many heads have keys of their own (docs/performance.md).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from lmkit.nn.turned import LANES

_TERMS = 8  # of a sum that one loop makes: with more the slices are read from too many places at once
_LAST_TERMS = 16  # the same where little is left


@dataclass(frozen=True)
class Slots:
    """One layer's keys or values, to be read where they are.

    Attributes:
        all_LBSKH: of every layer, and of so many rows or more.
        layer: int32 [].
        rows: B; the first.
    """

    all_LBSKH: jax.Array
    layer: jax.Array
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of this layer's: B, S, K, H."""
        return (self.rows, *self.all_LBSKH.shape[2:])

    def part(self, slot: int, num_slots: int, first: int, size: int) -> jax.Array:
        """[B, slots, K, numbers]: some slots from `slot` on, and some numbers of each head from `first` on."""
        start, sizes = (self.layer, 0, slot, 0, first), (1, self.rows, num_slots, self.shape[2], size)
        return lax.dynamic_slice(self.all_LBSKH, start, sizes)[0]


def read_in_place(cache_LBSKH: jax.Array, num_tokens: int) -> bool:
    """Whether the loops below can read a cache for so many new tokens of each row."""
    return num_tokens == 1 and cache_LBSKH.dtype == jnp.float32 and cache_LBSKH.shape[-1] % LANES == 0


def slot_scores(q_B1KGH: jax.Array, k: Slots) -> jax.Array:
    """float32 [B, K, G, 1, S]: each query times each cached key."""
    rows, num_slots, heads, size = k.shape
    sums_BSKGN = None
    for first in range(0, size, LANES):
        k_BSK1N = k.part(0, num_slots, first, LANES)[:, :, :, None]
        term = k_BSK1N * q_B1KGH[..., first : first + LANES].astype(jnp.float32)
        sums_BSKGN = term if sums_BSKGN is None else sums_BSKGN + term
    flat_nN = lax.optimization_barrier(sums_BSKGN).reshape(-1, LANES)
    scores_BSKG = jnp.dot(flat_nN, jnp.ones(LANES)).reshape(rows, num_slots, heads, -1)
    return jnp.moveaxis(scores_BSKG, 1, 3)[:, :, :, None]


def slot_values(weights_BKG1S: jax.Array, v: Slots) -> jax.Array:
    """float32 [B, 1, K, G, H]: the cached values, weighted and added up."""
    _, num_slots, _, size = v.shape
    weights_BSKG1 = lax.optimization_barrier(jnp.moveaxis(weights_BKG1S[:, :, :, 0], 3, 1))[..., None]
    each = num_slots // _TERMS

    def term(slot: int, count: int) -> jax.Array:
        return weights_BSKG1[:, slot : slot + count] * v.part(slot, count, 0, size)[:, :, :, None]

    sums = [_summed(sum(term(n * each, each) for n in range(_TERMS)))] if each else []  # type: ignore[arg-type]
    sums += [term(slot, 1) for slot in range(_TERMS * each, num_slots)]
    return sum(sums[1:], sums[0])


def _summed(x_BC: jax.Array) -> jax.Array:
    """The sum over the second dim, which stays as one; in loops that add arrays, since those over numbers are slow."""
    left = []
    while (count := x_BC.shape[1]) > 1:
        x_BC = lax.optimization_barrier(x_BC)
        terms = min(count, _LAST_TERMS)
        each = count // terms
        left += [x_BC[:, n : n + 1] for n in range(terms * each, count)]
        x_BC = sum(x_BC[:, n * each : (n + 1) * each] for n in range(terms))  # type: ignore[assignment]
    return sum(left, x_BC)
