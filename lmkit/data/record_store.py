"""The record store: labelled records as columns of arrays, read at random by row.

STORE/meta.json              columns, labels, counts, and how it was made
STORE/tokenizer.json         where there is text
STORE/columns/<name>/        zarr3 as in store.py: the rows one after the other, flat
STORE/columns/<name>.ends/   zarr3 int64: where each row ends, of columns whose rows differ in length
STORE/columns/_side/         zarr3 uint64: the hash of each record's name; 0 trains, 1 is held out where files say
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from lmkit.data.store import HELDOUT, TRAIN, ArrayWriter, open_array

RECORD_FORMAT = 1
_HASHED = 2  # hashes begin here


class Column(NamedTuple):
    """What a column holds: rows of one shape, or (shape None) one-dimensional rows of any length."""

    dtype: str
    shape: tuple[int, ...] | None


class RecordWriter:
    """Appends records, column by column."""

    def __init__(self, path: Path, columns: Mapping[str, Column]):
        self.columns, self.count = dict(columns), 0
        folder = path / "columns"
        self._arrays = {name: ArrayWriter(folder / name, column.dtype) for name, column in columns.items()}
        self._arrays["_side"] = ArrayWriter(folder / "_side", "uint64", shard=1 << 20)
        ragged = [name for name, column in columns.items() if column.shape is None]
        self._ends = {name: ArrayWriter(folder / f"{name}.ends", "int64", shard=1 << 20) for name in ragged}
        self._lengths = dict.fromkeys(ragged, 0)

    def append(self, name: str, heldout: bool | None, row: Mapping[str, np.ndarray]) -> None:
        """One record; `heldout` None leaves its side to the hash of its name."""
        side = _hash(name) if heldout is None else int(heldout)
        self._arrays["_side"].append(np.array([side], np.uint64))
        for column, (_, shape) in self.columns.items():
            values = np.asarray(row[column])
            assert values.ndim == 1 if shape is None else values.shape == shape, (column, values.shape, shape)
            self._arrays[column].append(values.reshape(-1))
            if shape is None:
                self._lengths[column] += len(values)
                self._ends[column].append(np.array([self._lengths[column]]))
        self.count += 1

    def close(self) -> dict[str, Any]:
        """Writes what is queued; returns what meta.json says of it."""
        for array in (*self._arrays.values(), *self._ends.values()):
            array.close()
        return {"count": self.count, "columns": {name: list(column) for name, column in self.columns.items()}}


def _hash(name: str) -> int:
    return max(int.from_bytes(hashlib.md5(name.encode()).digest()[:8], "big"), _HASHED)


class RecordStore:
    """A finished store, divided into what trains and what is held out. Reading is safe from many threads."""

    def __init__(self, path: Path, holdout_every: int, fold: int = 0):
        self.path = path
        self.meta: dict[str, Any] = json.loads((path / "meta.json").read_text())
        if self.meta["format"] != RECORD_FORMAT:
            raise ValueError(
                f"{path}: store format {self.meta['format']}, this version reads {RECORD_FORMAT}; delete it to rebuild"
            )
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 28}})
        self.columns = {
            name: Column(dtype, None if shape is None else tuple(shape))
            for name, (dtype, shape) in self.meta["columns"].items()
        }
        self._arrays = {name: self._open(name) for name in self.columns}
        self._ends = {
            name: np.concatenate([[0], self._open(f"{name}.ends").read().result()])
            for name, column in self.columns.items()
            if column.shape is None
        }
        side = self._open("_side").read().result()
        self.fixed_sides = bool((side < _HASHED).any())
        held = np.where(side < _HASHED, side == 1, side % np.uint64(holdout_every) == fold)
        self.rows = {TRAIN: np.flatnonzero(~held), HELDOUT: np.flatnonzero(held)}

    def _open(self, name: str) -> ts.TensorStore:
        return open_array(self.path / "columns" / name, self._context)

    @staticmethod
    def held_out(name: str, holdout_every: int, fold: int) -> bool:
        """Whether the hash of a record's name holds it out."""
        return _hash(name) % holdout_every == fold

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of their numbers."""
        return self.meta.get("labels", [])

    def lengths(self, name: str, split: str) -> np.ndarray:
        """int64: the length of each row of a split, of a column whose rows differ."""
        return np.diff(self._ends[name])[self.rows[split]]

    def read(self, name: str, split: str, index: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Rows of a column by their number in the split. One batched read; a flipped bit raises."""
        array, shape = self._arrays[name], self.columns[name].shape
        rows = self.rows[split][np.asarray(index, np.int64)]
        if shape is None:
            starts, stops = self._ends[name][rows], self._ends[name][rows + 1]
        else:
            size = int(np.prod(shape, dtype=np.int64))
            starts, stops = rows * size, (rows + 1) * size
        with ts.Batch() as batch:
            reads = [array[int(start) : int(stop)].read(batch=batch) for start, stop in zip(starts, stops, strict=True)]
        return [read.result() if shape is None else read.result().reshape(shape) for read in reads]
