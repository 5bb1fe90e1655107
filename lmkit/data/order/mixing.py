"""Which part of a mixture each row belongs to: exact shares, caps and a course of weights, with no state.

Rows are dealt out in blocks of 1,024. A short table has a line wherever the quotas of a block change: where the weights
move on to their next level, and where a part has been seen as often as it may. Any row is then found by a search in the
table and arithmetic.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import DataConfig
from lmkit.data.keyed import permute

BLOCK = 1024  # rows of a block: weights are met exactly to 1/1024
_LEVELS = 64  # of the weights on their way; a line of the table each


class Course(NamedTuple):
    """How the weights of a mixture run, and where its parts end."""

    weights: Sequence[float]  # share of rows of each part, any positive scale
    final: Sequence[float] = ()  # what they change to; () = they stay
    rows: tuple[int, int] = (0, 0)  # from which row on they change, and where they have arrived
    max_epochs: Sequence[float] = ()  # how often each part may be seen; 0 = without end; () = all of them


def course_of(data: DataConfig, weights: dict[str, float], batch_size: int) -> Course:
    """The course that a configuration asks for; `weights` are those of the parts, in their order."""
    parts = [data.mixture.get(name) for name in weights]
    values = list(weights.values())
    final = [
        part.final_weight if part and part.final_weight >= 0 else value
        for part, value in zip(parts, values, strict=True)
    ]
    rows = (data.anneal_from_step * batch_size, data.anneal_to_step * batch_size)
    if not batch_size and final != values:
        raise ConfigError("batch_size=0 with a final_weight in data.mixture: weights change by step; give batch_size")
    return Course(values, final if final != values else (), rows, [part.max_epochs if part else 0.0 for part in parts])


class Segment(NamedTuple):
    """Blocks that are all dealt alike."""

    block: int  # the first
    quota: np.ndarray  # rows of a block of each part
    before: np.ndarray  # rows of each part before the first block


class Deal:
    """The table of a course.

    Args:
        counts: elements of each part; at least 1 each.
        course: of the weights.
        seed: of the order inside a block.
    """

    def __init__(self, counts: np.ndarray, course: Course, seed: int):
        self.parts, self.seed = len(counts), seed
        segments, self.num_rows = _segments(counts, course)
        self.first = np.array([segment.block for segment in segments])
        self.quota = np.stack([segment.quota for segment in segments])
        self.before = np.stack([segment.before for segment in segments])

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which part each row belongs to, and how many rows of that part came before it."""
        if self.parts == 1:
            return np.zeros_like(rows), rows
        part, number = np.empty_like(rows), np.empty_like(rows)
        blocks = rows // BLOCK
        for block in np.unique(blocks):
            segment = np.searchsorted(self.first, block, side="right") - 1
            quota = self.quota[segment]
            total = int(quota.sum())  # less than a block only in the last one there is
            dealt = np.repeat(np.arange(self.parts), quota)[permute(np.arange(total), total, self.seed, int(block), 2)]
            rank = np.empty(total, np.int64)
            rank[np.argsort(dealt, kind="stable")] = np.concatenate([np.arange(n) for n in quota])
            here = blocks == block
            place = rows[here] % BLOCK
            mine = dealt[place]
            part[here] = mine
            number[here] = self.before[segment][mine] + (block - self.first[segment]) * quota[mine] + rank[place]
        return part, number


def _segments(counts: np.ndarray, course: Course) -> tuple[list[Segment], int | None]:
    """The lines of the table, and how many rows there are in all; None without end."""
    caps = np.array(course.max_epochs or [0.0] * len(counts))
    left = [max(round(cap * int(count)), 1) if cap else None for cap, count in zip(caps, counts, strict=True)]
    levels, block, before = _levels(course), 0, np.zeros(len(counts), np.int64)
    segments: list[Segment] = []
    for (_, weights), end in zip(levels, [*(first for first, _ in levels[1:]), None], strict=True):
        while end is None or block < end:
            room = np.array([np.iinfo(np.int64).max if n is None else n for n in left]) - before
            quota = _clipped(weights, room)
            if quota.sum() < BLOCK:  # the last rows that there are
                if quota.any() or not segments:
                    segments.append(Segment(block, quota, before))
                return segments, block * BLOCK + int(quota.sum())
            ends = [int(space) // int(n) for space, n, cap in zip(room, quota, left, strict=True) if cap and n]
            ends += [end - block] if end is not None else []
            segments.append(Segment(block, quota, before))
            if not ends:
                return segments, None
            block, before = block + min(ends), before + min(ends) * quota
    raise AssertionError("the last level has no end")


def _levels(course: Course) -> list[tuple[int, np.ndarray]]:
    """(first block, weights) of each level of the course: a line in at most 64 steps, by the middle of each block."""
    start, (first, last) = np.array(course.weights, np.float64), course.rows
    if not len(course.final):
        return [(0, start)]
    change, span, steps = np.array(course.final, np.float64) - start, max(last - first, 1), _LEVELS - 1
    levels = {0: start}
    for level in range(1, _LEVELS):
        row = first + -(-span * (2 * level - 1) // (2 * steps))  # where the line is nearer to this level
        levels[max(-(-(row - BLOCK // 2) // BLOCK), 0)] = start + change * (level / steps)
    return sorted(levels.items(), key=lambda item: item[0])


def _clipped(weights: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Quotas of a block, no part over its room; what it leaves goes to the others by their weights.

    They sum to less than a block only where there is no more.
    """
    quota = np.zeros(len(weights), np.int64)
    while (lacking := BLOCK - int(quota.sum())) > 0:
        open_to = np.where(quota < room, weights, 0.0)
        if not open_to.any():
            break
        quota = np.minimum(quota + exact_shares(open_to, lacking), room)
    return quota


def exact_shares(weights: np.ndarray, total: int) -> np.ndarray:
    """Integers that sum to `total` in proportion to the weights (largest remainders)."""
    exact = weights / weights.sum() * total
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return shares


def check_lasts(num_rows: int | None, steps: int, batch_size: int) -> None:
    """Raises ConfigError where a course with so many rows ends before the run does."""
    if num_rows is not None and num_rows < steps * batch_size:
        reached = num_rows // batch_size
        raise ConfigError(
            f"data.mixture: every part that has a weight has been seen max_epochs times by step {reached} of "
            f"train.steps={steps}: set train.steps={max(reached, 1)} or less, raise data.mixture.NAME.max_epochs of a "
            f"part (0 = without end), or add text"
        )
