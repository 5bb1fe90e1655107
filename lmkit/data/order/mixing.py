"""Which part of a mixture each row belongs to: exact shares, caps and a course of weights, with no state.

Rows are dealt out in blocks of 1,024. How many rows of each part come before a block is a function of the block: the
rounded share of all rows before it. So a weight below 1/1,024 gets its rows, too, in some blocks and not in others. A
short table has a line wherever the shares change: where the weights move on to their next level, and where a part has
been seen as often as it may. Any row is then found by a search in the table and arithmetic.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import DataConfig
from lmkit.data.keyed import permute

FORMAT = 2  # of the order of a mixture; it goes up when the same weights and seed deal other rows
BLOCK = 1024  # rows of a block
_ENDLESS = np.iinfo(np.int64).max  # rows or blocks
_GOLDEN = (5**0.5 - 1) / 2  # its multiples, without their whole part, lie evenly between 0 and 1
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
    """Blocks that are all dealt by the same shares."""

    block: int  # the first
    before: np.ndarray  # rows of each part before the first block
    shares: np.ndarray  # of the rows, sum 1
    phase: np.ndarray  # what each part is owed at the first block, in rows, 0 <= phase < 1
    size: int = BLOCK  # rows of a block; fewer in the last one there is


class Deal:
    """The table of a course.

    Args:
        counts: elements of each part; at least 1 each.
        course: of the weights.
        seed: of the order inside a block.
    """

    def __init__(self, counts: np.ndarray, course: Course, seed: int):
        self.parts, self.course, self.seed = len(counts), course, seed
        self.segments, self.num_rows = _segments(counts, course)
        self.first = np.array([segment.block for segment in self.segments])

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which part each row belongs to, and how many rows of that part came before it."""
        if self.parts == 1:
            return np.zeros_like(rows), rows
        part, number = np.empty_like(rows), np.empty_like(rows)
        blocks = rows // BLOCK
        for block in np.unique(blocks):
            before, quota = self._block(int(block))
            total = int(quota.sum())
            dealt = np.repeat(np.arange(self.parts), quota)[permute(np.arange(total), total, self.seed, int(block), 2)]
            rank = np.empty(total, np.int64)
            rank[np.argsort(dealt, kind="stable")] = np.concatenate([np.arange(n) for n in quota])
            here = blocks == block
            place = rows[here] % BLOCK
            mine = dealt[place]
            part[here] = mine
            number[here] = before[mine] + rank[place]
        return part, number

    def dealt(self, num_rows: int) -> np.ndarray:
        """How many of the first rows belong to each part: int64 [parts]."""
        num_rows = num_rows if self.num_rows is None else min(num_rows, self.num_rows)
        block = num_rows // BLOCK
        rest, _ = self(np.arange(block * BLOCK, num_rows))
        return self._block(block)[0] + np.bincount(rest, minlength=self.parts)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of each part before a block, and in it."""
        segment = self.segments[np.searchsorted(self.first, block, side="right") - 1]
        rows = (block - segment.block) * BLOCK
        start, stop = (_dealt(segment.shares, segment.phase, n)[0] for n in (rows, rows + segment.size))
        return segment.before + start, stop - start


def _dealt(shares: np.ndarray, phase: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each part among the first `rows`, and each part's phase after them.

    A part has floor(share x + phase) of them, with the x near `rows` at which they sum to `rows` (a divisor method:
    more rows never give a part fewer). So each part is less than a row from share x.
    """
    low, high, x = max(rows - len(shares), 0.0), float(rows + len(shares)), float(rows)
    while True:
        exact = shares * x + phase
        counts = np.floor(exact).astype(np.int64)
        total = int(counts.sum())
        if total == rows:
            return counts, exact - counts
        low, high = (x, high) if total < rows else (low, x)
        x = (low + high) / 2
        if not low < x < high:
            break
    exact = shares * low + phase  # several parts reach their next row at the same x: the first ones get it
    counts = np.floor(exact).astype(np.int64)
    reaching = np.flatnonzero(np.floor(shares * high + phase) > counts)[: rows - int(counts.sum())]
    counts[reaching] += 1
    return counts, np.clip(exact - counts, 0.0, np.nextafter(1.0, 0.0))


def _segments(counts: np.ndarray, course: Course) -> tuple[list[Segment], int | None]:
    """The lines of the table, and how many rows there are in all; None without end."""
    caps = np.array(course.max_epochs or [0.0] * len(counts))
    left = np.array([max(round(cap * int(n)), 1) if cap else _ENDLESS for cap, n in zip(caps, counts, strict=True)])
    levels, block, before = _levels(course), 0, np.zeros(len(counts), np.int64)
    phase = np.arange(1, len(counts) + 1) * _GOLDEN % 1.0
    segments: list[Segment] = []
    for (_, weights), end in zip(levels, [*(first for first, _ in levels[1:]), None], strict=True):
        while end is None or block < end:
            room = np.where(left == _ENDLESS, _ENDLESS, left - before)
            open_to = np.where(room > 0, weights, 0.0)
            shares = open_to / (math.fsum(open_to) or 1.0)
            blocks = _blocks_within(shares, phase, room) if open_to.any() else 0
            if end is not None:
                blocks = min(blocks, end - block)
            if blocks == _ENDLESS:
                return [*segments, Segment(block, before, shares, phase)], None
            if blocks:
                segments.append(Segment(block, before, shares, phase))
                rows, phase = _dealt(shares, phase, blocks * BLOCK)
            else:  # a part ends in this block
                blocks, rows = 1, _clipped(weights, room)
                if not rows.any() and segments:
                    return segments, block * BLOCK
                total = int(rows.sum())
                segments.append(Segment(block, before, rows / max(total, 1), np.full(len(rows), 0.5), total))
                if total < BLOCK:  # the last rows that there are
                    return segments, block * BLOCK + total
            block, before = block + blocks, before + rows
    raise AssertionError("the last level has no end")


def _blocks_within(shares: np.ndarray, phase: np.ndarray, room: np.ndarray) -> int:
    """So many whole blocks can be dealt before a part needs more than its room."""
    ending = (room < _ENDLESS) & (shares > 0)
    if not ending.any():
        return _ENDLESS
    blocks = int(np.min(room[ending] / (shares[ending] * BLOCK)))  # a few rows off at most
    while (_dealt(shares, phase, (blocks + 1) * BLOCK)[0] <= room).all():
        blocks += 1
    while blocks and (_dealt(shares, phase, blocks * BLOCK)[0] > room).any():
        blocks -= 1
    return blocks


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
        quota = np.minimum(quota + _exact_shares(open_to, lacking), room)
    return quota


def _exact_shares(weights: np.ndarray, total: int) -> np.ndarray:
    """Integers that sum to `total` in proportion to the weights (largest remainders)."""
    exact = weights / weights.sum() * total
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return shares


def asked_shares(course: Course, num_rows: int) -> np.ndarray:
    """The mean share of each part over the first rows, by the line that the weights follow; caps are not in it."""
    start = np.array(course.weights, np.float64)
    if not len(course.final):
        return start / start.sum()
    (first, last), final = course.rows, np.array(course.final, np.float64)
    rows = np.linspace(0, num_rows, 2001)[1::2, None]  # the middles of a thousand pieces
    weights = start + (final - start) * np.clip((rows - first) / max(last - first, 1), 0.0, 1.0)
    return np.mean(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-30), axis=0)


def check_lasts(num_rows: int | None, steps: int, batch_size: int) -> None:
    """Raises ConfigError where a course with so many rows ends before the run does."""
    if num_rows is not None and num_rows < steps * batch_size:
        reached = num_rows // batch_size
        raise ConfigError(
            f"data.mixture: every part that has a weight has been seen max_epochs times by step {reached} of "
            f"train.steps={steps}: set train.steps={max(reached, 1)} or less, raise data.mixture.NAME.max_epochs of a "
            f"part (0 = without end), or add text"
        )
