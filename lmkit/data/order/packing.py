"""Whole documents packed into rows, so that few are cut (Ding et al. 2024, "Fewer Truncations Improve Language
Modeling").

A document of n tokens is a piece of n + 1 places that begins at the end token before it: each of its tokens and its
end are predicted. Of one with more than T places whole rows are cut; what is left of it is a piece like any other.
Pieces go into rows of T places by best-fit decreasing: the longest first, each where the least room is left.

    PACKING/rows.npy      int64 [rows of several pieces + 1]: where the pieces of each begin
    PACKING/starts.npy    int64 [pieces]: where each begins in the tokens of its split
    PACKING/lengths.npy   int32 [pieces]: its places
    PACKING/long.npy      int64 [2, long documents + 1]: where each begins, and how many rows are cut from those before
    PACKING/meta.json     counts
"""

import bisect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.data.cache import make_once, place_of

PACKING_FORMAT = 1
GROUP = 1 << 22  # documents packed at a time: bounds the memory; only a group's last rows have room left


class Pieces(NamedTuple):
    """Stretches of a split, each its inputs; targets are one token further."""

    start: np.ndarray  # int64
    length: np.ndarray  # int64, T at most


class Layout:
    """The rows of a store's training split at one length. Reads only what is asked for."""

    def __init__(self, path: Path):
        try:
            meta = json.loads((path / "meta.json").read_text())
            self.seq_len, self.num_places, self.num_pieces = (
                int(meta[name]) for name in ("seq_len", "places", "pieces")
            )
            self._rows, self._starts, self._lengths, self._long = (
                np.load(path / f"{name}.npy", mmap_mode="r") for name in ("rows", "starts", "lengths", "long")
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise ConfigError(f"{path} is damaged: {error}; remove it, and it is made again") from error
        self.num_whole = int(self._long[1, -1])  # rows cut from long documents; they come first
        self.num_rows = self.num_whole + len(self._rows) - 1

    @property
    def filled(self) -> float:
        """Share of the places that hold text."""
        return self.num_places / (self.num_rows * self.seq_len)

    def row(self, number: int) -> Pieces:
        """The pieces of a row, in the order of the store."""
        if number < self.num_whole:
            document = int(np.searchsorted(self._long[1], number, side="right")) - 1
            first, before = self._long[:, document]
            return Pieces(np.array([first + (number - before) * self.seq_len]), np.array([self.seq_len]))
        first, stop = self._rows[number - self.num_whole : number - self.num_whole + 2]
        return Pieces(np.array(self._starts[first:stop]), np.array(self._lengths[first:stop], np.int64))

    def longest(self) -> np.ndarray:
        """int32 [rows]: places of the longest piece of each row."""
        packed = np.maximum.reduceat(self._lengths, self._rows[:-1]) if len(self._rows) > 1 else self._lengths[:0]
        return np.concatenate([np.full(self.num_whole, self.seq_len, np.int32), packed])


def pack(ends: Any, seq_len: int, cache: Path, made_from: list[Any]) -> Layout:
    """The layout of documents that end at `ends` (the place of each one's end token), from the cache or made.

    Args:
        ends: int64, an array or a thing that reads slices of one; only a layout that is made reads them.
        made_from: plain values that no other ends have (`TokenStore.identity`), so any copy of a store finds it.
    """
    path = place_of(cache, "packings", [PACKING_FORMAT, seq_len, made_from])
    if not (path / "meta.json").is_file():
        make_once(path, lambda tmp: _build(tmp, ends, seq_len))
    return Layout(path)


def _build(path: Path, ends: Any, seq_len: int) -> None:
    count = sum(int(np.count_nonzero(size % seq_len)) for _, size in _groups(ends))
    starts = np.lib.format.open_memmap(path / "starts.npy", "w+", np.int64, (count,))
    lengths = np.lib.format.open_memmap(path / "lengths.npy", "w+", np.int32, (count,))
    rows, long, done = [np.zeros(1, np.int64)], [np.zeros((2, 0), np.int64)], 0
    for begins, size in _groups(ends):
        whole, rest = size // seq_len, size % seq_len
        (cut,) = np.nonzero(whole)
        long.append(np.stack([begins[cut], whole[cut]]))
        (left,) = np.nonzero(rest)
        begins, rest = (begins + whole * seq_len)[left], rest[left].astype(np.int32)
        bins = best_fit(rest, seq_len)
        order = np.argsort(bins, kind="stable")
        starts[done : done + len(left)], lengths[done : done + len(left)] = begins[order], rest[order]
        rows.append(np.cumsum(np.bincount(bins)) + done)
        done += len(left)
    where, cuts = np.concatenate(long, axis=1)
    before = np.concatenate([[0], np.cumsum(cuts)])
    np.save(path / "rows.npy", np.concatenate(rows))
    np.save(path / "long.npy", np.stack([np.append(where, int(ends[-1]) if len(ends) else 0), before]))
    starts.flush()
    lengths.flush()
    places, whole = int(lengths.sum(dtype=np.int64)) + int(before[-1]) * seq_len, int(before[-1])
    meta = {"format": PACKING_FORMAT, "seq_len": seq_len, "places": places, "pieces": count + whole}
    (path / "meta.json").write_text(json.dumps(meta) + "\n")


def _groups(ends: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where each document's piece begins, and its places: so many documents at a time."""
    for first in range(0, len(ends), GROUP):
        some = np.asarray(ends[first : first + GROUP])
        begins = np.concatenate([[ends[first - 1] if first else 0], some[:-1]])
        yield begins, some - begins


def best_fit(lengths: np.ndarray, room: int) -> np.ndarray:
    """The bin of each piece by best-fit decreasing; int32, bins numbered from 0.

    Pieces of one length and bins of one remaining room are alike, so they are handled together: a bin takes as many
    pieces of a length as fit before the next bin takes one, since it has become the tighter fit.
    """
    order = np.argsort((room - lengths).astype(np.uint16 if room <= 1 << 16 else np.uint32), kind="stable")
    counts = np.bincount(lengths, minlength=room + 1)
    bins, opened = np.empty(len(lengths), np.int32), 0
    rooms: list[int] = []  # those that some bins have left, ascending
    groups: dict[int, list[np.ndarray]] = {}
    done = 0

    def put(length: int, into: np.ndarray, each: int) -> None:
        nonlocal done
        bins[order[done : done + each * len(into)]] = np.repeat(into, each)
        done += each * len(into)

    def keep(left: int, some: np.ndarray) -> None:
        if left and len(some):
            if left not in groups:
                bisect.insort(rooms, left)
                groups[left] = []
            groups[left].append(some)

    for length in np.flatnonzero(counts)[::-1].tolist():
        count = int(counts[length])
        while count:
            at = bisect.bisect_left(rooms, length)
            if at < len(rooms):
                space = rooms[at]
                some = groups[space].pop()
                if not groups[space]:
                    del groups[space], rooms[at]
            else:
                space, each = room, room // length
                some = np.arange(opened, opened + -(-count // each), dtype=np.int32)
                opened += len(some)
            each = space // length
            full = min(count // each, len(some))
            put(length, some[:full], each)
            keep(space - each * length, some[:full])
            count -= full * each
            last = min(count, each) if full < len(some) else 0  # fewer than `each`: the last bin of this length
            put(length, some[full : full + 1], last)
            keep(space - last * length, some[full : full + 1])
            keep(space, some[full + 1 :])
            count -= last
    return bins
