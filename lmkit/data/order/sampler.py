"""(seed, step) -> the global batch, as a pure function: the whole data state is one integer.

A split of N tokens is cut into windows of T + 1 tokens that overlap by one. Each epoch shifts the cuts by an
offset of its own and visits every window once, in the order of a keyed permutation that is evaluated at a point,
never stored. What a mixture is dealt out by is in mixing.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.data.keyed import hash64, permute
from lmkit.data.order.mixing import Course, Deal

_SHARES = 64  # of an epoch that goes from short to long
_TIE = 3  # use of randomness


class Draw(NamedTuple):
    """What each row of a batch is: which part of the mixture, which epoch of it, and which of its elements."""

    part: np.ndarray
    epoch: np.ndarray
    index: np.ndarray


class DrawnRows(NamedTuple):
    """The same of token windows: where each one starts."""

    part: np.ndarray
    epoch: np.ndarray
    start: np.ndarray


class Order:
    """The order of the elements of a mixture: every element once an epoch, exact shares of rows.

    Args:
        counts: elements of each part; at least 1 each.
        weights: share of rows of each part, any positive scale; or their course.
        seed: the same seed gives the same order everywhere.
        lengths: of each part the length of each of its elements; with them the first epoch goes from short to long.
    """

    def __init__(
        self, counts: Sequence[int] | np.ndarray, weights: Sequence[float] | Course, seed: int,
        lengths: Sequence[np.ndarray] = (),
    ):  # fmt: skip
        self.counts, self.seed = np.array(counts, np.int64), seed
        shares = np.asarray(weights.weights if isinstance(weights, Course) else weights, np.float64)
        if not len(self.counts) or self.counts.min() < 1 or len(shares) != len(self.counts):
            raise ConfigError(
                f"parts of {self.counts.tolist()} elements with weights {shares.tolist()}: give one weight a part, and "
                f"parts of at least one element"
            )
        if not np.isfinite(shares).all() or shares.min() < 0 or not shares.any():
            raise ConfigError(f"weights {shares.tolist()}: none may be negative, and one at least above 0")
        self.deal = Deal(self.counts, weights if isinstance(weights, Course) else Course(weights), seed)
        self.num_rows = self.deal.num_rows  # None: without end
        self.rising = [_by_length(one, seed, part) for part, one in enumerate(lengths)]

    def draw(self, first: int, count: int) -> Draw:
        """Rows first .. first + count of the stream of rows."""
        return self.at(np.arange(first, first + count, dtype=np.int64))

    def at(self, rows: np.ndarray) -> Draw:
        """Any rows of the stream, by their numbers (int64)."""
        if self.num_rows is not None and len(rows) and rows.max() >= self.num_rows:
            raise ConfigError(
                f"row {rows.max()} of {self.num_rows}: every part has been seen max_epochs times; ask less"
            )
        part, number = self.deal(rows)
        epoch, within = number // self.counts[part], number % self.counts[part]
        index = permute(within, self.counts[part], self.seed, part, epoch)
        for p, rising in enumerate(self.rising):
            if (first := (part == p) & (epoch == 0)).any():
                index[first] = rising[_within_shares(within[first], len(rising), self.seed, p)]
        return Draw(part, epoch, index)


def _by_length(lengths: np.ndarray, seed: int, part: int) -> np.ndarray:
    """The elements from short to long; among equals in no order, or a store's order would be the curriculum."""
    return np.lexsort((hash64(seed, part, np.arange(len(lengths)), _TIE), lengths))


def _within_shares(place: np.ndarray, count: int, seed: int, part: int) -> np.ndarray:
    """LayerInputs in an epoch, shuffled inside each of its 64 shares."""
    share = (place * _SHARES + _SHARES - 1) // count  # share s begins at place s * count // _SHARES
    first, stop = share * count // _SHARES, (share + 1) * count // _SHARES
    return first + permute(place - first, stop - first, seed, part, share, _TIE)


class Sampler:
    """The sample order of a mixture of token streams.

    Args:
        sizes: tokens of each part; at least seq_len + 1 each.
        weights: share of rows of each part, any positive scale; or their course.
        seq_len: T.
        seed: of the order; the same seed gives the same order everywhere.
    """

    def __init__(self, sizes: list[int], weights: Sequence[float] | Course, seq_len: int, seed: int):
        self.seq_len, self.seed = seq_len, seed
        self.sizes = np.array(sizes, np.int64)
        # An offset below `slack` keeps the number of windows the same in every epoch.
        self.windows = np.maximum((self.sizes - seq_len) // seq_len, 1)
        self.slack = np.maximum(self.sizes - self.windows * seq_len, 1)
        self.order = Order(self.windows, weights, seed)

    def rows(self, first: int, count: int) -> DrawnRows:
        """Rows first .. first + count of the stream of rows."""
        return self.at(np.arange(first, first + count, dtype=np.int64))

    def at(self, rows: np.ndarray) -> DrawnRows:
        """Any rows of the stream, by their numbers (int64)."""
        part, epoch, window = self.order.at(rows)
        offset = hash64(self.seed, part, epoch, 1) % np.minimum(self.slack[part], self.seq_len).astype(np.uint64)
        return DrawnRows(part, epoch, window * self.seq_len + offset.astype(np.int64))

    def batch(self, step: int, batch_size: int) -> DrawnRows:
        """The rows of global batch `step`."""
        return self.rows(step * batch_size, batch_size)
