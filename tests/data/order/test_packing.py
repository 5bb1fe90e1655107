"""Best-fit decreasing: against the textbook, every document once, in bounded groups, kept in the cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit.data.order import packing
from lmkit.data.order.packing import Layout, best_fit, pack


def textbook(lengths: list[int], room: int) -> list[int]:
    """What is left in each bin, a piece at a time."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in left if space >= length]
        if fitting:
            left[left.index(min(fitting))] -= length
        else:
            left.append(room - length)
    return sorted(left)


@given(st.integers(1, 70).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=250))))
@settings(max_examples=150, deadline=None)
def test_groups_at_once_are_best_fit_decreasing(case: tuple[int, list[int]]) -> None:
    room, lengths = case
    bins = best_fit(np.array(lengths, np.int32), room)
    assert set(bins) == set(range(len(set(bins)))), "numbered without a gap"
    left = room - np.bincount(bins, weights=lengths).astype(int) if lengths else np.zeros(0, int)
    assert sorted(left.tolist()) == textbook(lengths, room)


def test_long_rows_are_sorted_as_well() -> None:
    lengths = np.random.default_rng(0).integers(1, 100_000, 2000).astype(np.int32)
    left = 100_000 - np.bincount(best_fit(lengths, 100_000), weights=lengths).astype(int)
    assert sorted(left.tolist()) == textbook(lengths.tolist(), 100_000)


def places_of(layout: Layout) -> np.ndarray:
    """How often each place of the split is an input."""
    rows = [layout.row(number) for number in range(layout.num_rows)]
    size = max(int((row.start + row.length).max()) for row in rows)
    seen = np.zeros(size, int)
    for row in rows:
        assert row.length.sum() <= layout.seq_len
        assert (row.length > 0).all()
        assert (np.diff(row.start) > 0).all(), "in the order of the store"
        for start, length in zip(row.start, row.length, strict=True):
            seen[start : start + length] += 1
    return seen


@pytest.mark.parametrize("group", [1 << 22, 7])
@pytest.mark.parametrize("seq_len", [1, 5, 32, 1000])
def test_every_document_is_in_exactly_one_row(tmp_path: Path, monkeypatch, group: int, seq_len: int) -> None:
    monkeypatch.setattr(packing, "GROUP", group)
    lengths = np.random.default_rng(1).geometric(1 / 20, 300)
    ends = np.cumsum(lengths + 1)
    layout = pack(ends, seq_len, tmp_path, [])
    assert (places_of(layout) == 1).all()
    assert len(places_of(layout)) == ends[-1]
    rows = [layout.row(number) for number in range(layout.num_rows)]
    begins = np.concatenate([row.start for row in rows])
    for start, length in zip(ends - lengths - 1, lengths + 1, strict=True):
        cuts = np.sort(begins[(begins >= start) & (begins < start + length)])
        assert cuts.tolist() == list(range(start, start + length, seq_len)), "whole, or cut at every row's length"
    assert layout.num_pieces == len(begins)
    assert layout.filled == pytest.approx(ends[-1] / (layout.num_rows * seq_len))
    assert layout.longest().tolist() == [int(row.length.max()) for row in rows]


def test_a_layout_is_found_by_its_name_without_reading(tmp_path: Path) -> None:
    ends = np.cumsum(np.random.default_rng(0).integers(2, 50, 100))
    first = [pack(ends, 32, tmp_path, ["a store"]).row(number) for number in range(20)]
    unread: Any = None
    for one, row in zip(
        first, (pack(unread, 32, tmp_path, ["a store"]).row(number) for number in range(20)), strict=True
    ):
        assert np.array_equal(one.start, row.start)
    with pytest.raises(TypeError):
        pack(unread, 33, tmp_path, ["a store"])
    with pytest.raises(TypeError):
        pack(unread, 32, tmp_path, ["another"])


def test_almost_nothing_is_left_empty(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 100_000).astype(np.int64) + 1
    assert pack(np.cumsum(lengths), 2048, tmp_path, []).filled > 0.999
