"""(seed, step) -> the global batch, as a pure function: the whole data state is one integer.

A split of N tokens is cut into windows of T + 1 tokens that overlap by one. Each epoch shifts the cuts by an
offset of its own and visits every window once, in the order of a keyed permutation that is evaluated at a point,
never stored. A mixture is dealt out in blocks of rows with exact shares.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_BLOCK = 1024  # rows of a mixture block: weights are met exactly to 1/1024
_ROUNDS = 6


class Draw(NamedTuple):
    """What each row of a batch is: which part of the mixture, which epoch of it, and which of its elements."""

    part: np.ndarray
    epoch: np.ndarray
    index: np.ndarray


class Rows(NamedTuple):
    """The same of token windows: where each one starts."""

    part: np.ndarray
    epoch: np.ndarray
    start: np.ndarray


def hash64(*words: np.ndarray | int) -> np.ndarray:
    """uint64 hash of integers, element by element (SplitMix64's finaliser, Steele et al. 2014, applied per word)."""
    state = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for word in words:
            state = np.asarray(word, np.uint64) + state * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def uniform(*words: np.ndarray | int) -> np.ndarray:
    """float64 in [0, 1) of integers, element by element: the upper 53 bits of their hash."""
    return (hash64(*words) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def permute(index: np.ndarray, size: np.ndarray | int, *key: np.ndarray | int) -> np.ndarray:
    """A keyed permutation of range(size) at the points `index`.

    A balanced Feistel network on the next power of four, walked until it lands inside (Black and Rogaway 2002,
    section 3): fewer than four walks on average.
    """
    index, size = np.broadcast_arrays(np.asarray(index, np.uint64), np.asarray(size, np.uint64))
    bits = np.ceil(np.log2(np.maximum(size, 2).astype(np.float64)) / 2).astype(np.uint64)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    out, todo = index.copy(), np.ones(index.shape, bool)
    while todo.any():
        left, right = out >> bits, out & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (hash64(right, number, *key) & mask)
        out = np.where(todo, (left << bits) | right, out)
        todo = todo & (out >= size)
    return out.astype(np.int64)


class Order:
    """The order of the elements of a mixture: every element once an epoch, exact shares of rows.

    Args:
        counts: elements of each part; at least 1 each.
        weights: share of rows of each part, any positive scale.
        seed: the same seed gives the same order everywhere.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray, weights: Sequence[float], seed: int):
        self.counts, self.seed = np.array(counts, np.int64), seed
        self.quota = _exact_shares(np.array(weights, np.float64), _BLOCK)

    def draw(self, first: int, count: int) -> Draw:
        """Rows first .. first + count of the endless stream of rows."""
        part, number = self._deal(np.arange(first, first + count, dtype=np.int64))
        epoch, within = number // self.counts[part], number % self.counts[part]
        return Draw(part, epoch, permute(within, self.counts[part], self.seed, part, epoch))

    def _deal(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which part each row belongs to, and how many rows of that part came before it."""
        if len(self.counts) == 1:
            return np.zeros_like(index), index
        block, place = index // _BLOCK, index % _BLOCK
        part, number = np.empty_like(index), np.empty_like(index)
        in_order = np.repeat(np.arange(len(self.quota)), self.quota)
        for one in np.unique(block):
            dealt = in_order[permute(np.arange(_BLOCK), _BLOCK, self.seed, int(one), 2)]
            rank = np.zeros(_BLOCK, np.int64)
            for p, quota in enumerate(self.quota):
                rank[dealt == p] = np.arange(quota)
            here = block == one
            part[here] = dealt[place[here]]
            number[here] = one * self.quota[part[here]] + rank[place[here]]
        return part, number


class Sampler:
    """The sample order of a mixture of token streams.

    Args:
        sizes: tokens of each part; at least seq_len + 1 each.
        weights: share of rows of each part, any positive scale.
        seq_len: T.
        seed: of the order; the same seed gives the same order everywhere.
    """

    def __init__(self, sizes: list[int], weights: list[float], seq_len: int, seed: int):
        self.seq_len, self.seed = seq_len, seed
        self.sizes = np.array(sizes, np.int64)
        # An offset below `slack` keeps the number of windows the same in every epoch.
        self.windows = np.maximum((self.sizes - seq_len) // seq_len, 1)
        self.slack = np.maximum(self.sizes - self.windows * seq_len, 1)
        self.order = Order(self.windows, weights, seed)

    def rows(self, first: int, count: int) -> Rows:
        """Rows first .. first + count of the endless stream of rows."""
        part, epoch, window = self.order.draw(first, count)
        offset = hash64(self.seed, part, epoch, 1) % np.minimum(self.slack[part], self.seq_len).astype(np.uint64)
        return Rows(part, epoch, window * self.seq_len + offset.astype(np.int64))

    def batch(self, step: int, batch_size: int) -> Rows:
        """The rows of global batch `step`."""
        return self.rows(step * batch_size, batch_size)


def _exact_shares(weights: np.ndarray, total: int) -> np.ndarray:
    """Integers that sum to `total` in proportion to the weights (largest remainders)."""
    exact = weights / weights.sum() * total
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return shares
