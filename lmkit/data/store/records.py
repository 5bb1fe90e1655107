"""The record store: labelled records as columns of arrays, read at random by row.

STORE/tokenizer.json                      where there is text
STORE/parts/<part>/columns/<name>         the rows one after the other, flat
STORE/parts/<part>/columns/<name>.ends    int64: where each row ends in the part, where rows differ in length
STORE/parts/<part>/columns/_side          uint64: the hash of each record's name; 0 trains, 1 is held out, by files
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.data.sources.formats import Bad
from lmkit.data.store.frame import CorruptError, Frame
from lmkit.data.store.part_writer import Array, PartWriter
from lmkit.data.store.tokens import HELDOUT, TRAIN

RECORD_FORMAT = 3
_HASHED = 2  # hashes begin here


class Column(NamedTuple):
    """What a column holds: rows of one shape, or (shape None) one-dimensional rows of any length."""

    dtype: str
    shape: tuple[int, ...] | None


class RecordWriter:
    """Appends records to a part, column by column."""

    def __init__(self, folder: Path, columns: Mapping[str, Column]):
        self.columns, self.count = dict(columns), 0
        ragged = [name for name, column in columns.items() if column.shape is None]
        self._lengths = dict.fromkeys(ragged, 0)
        arrays = {f"columns/{name}": Array(column.dtype) for name, column in columns.items()}
        arrays |= {f"columns/{name}.ends": Array("int64", 1 << 20) for name in ragged}
        self._part = PartWriter(folder, arrays | {"columns/_side": Array("uint64", 1 << 20)})

    def append(self, name: str, heldout: bool | None, row: Mapping[str, np.ndarray]) -> None:
        """One record; `heldout` None leaves its side to the hash of its name."""
        self.extend([(name, heldout)], [row])

    def extend(self, sides: Sequence[tuple[str, bool | None]], rows: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Records: (name, heldout) of each, and its values by column."""
        hashes = [_hash(name) if heldout is None else int(heldout) for name, heldout in sides]
        self._part.append("columns/_side", np.array(hashes, np.uint64))
        for column, (_, shape) in self.columns.items():
            values = [np.asarray(row[column]) for row in rows]
            for one in values:
                assert one.ndim == 1 if shape is None else one.shape == shape, (column, one.shape, shape)
            self._part.append(f"columns/{column}", np.concatenate([one.reshape(-1) for one in values] or [np.empty(0)]))
            if shape is None:
                ends = self._lengths[column] + np.cumsum([len(one) for one in values], dtype=np.int64)
                self._part.append(f"columns/{column}.ends", ends)
                self._lengths[column] = int(ends[-1]) if len(ends) else self._lengths[column]
        self.count += len(rows)

    def close(self, facts: Mapping[str, Any], bad: Sequence[Bad] = ()) -> None:
        """Writes what is queued, and the records that cannot be used; the part is finished then."""
        self._part.close({"count": self.count, **facts}, bad)


def _hash(name: str) -> int:
    return max(int.from_bytes(hashlib.md5(name.encode()).digest()[:8], "big"), _HASHED)


class RecordStore:
    """A finished store, divided into what trains and what is held out. Reading is safe from many threads."""

    def __init__(
        self, place: str | Path, holdout_every: int, fold: int = 0, cache_bytes: int = 1 << 28, *,
        skip_corrupt: bool = False,
    ):  # fmt: skip
        self.skip_corrupt = skip_corrupt
        self.lost: dict[str, int] = {}  # what is wrong -> rows that it cost
        self.frame = Frame(place, cache_bytes)
        self.place, self.meta = self.frame.place, self.frame.meta
        self.frame.require(RECORD_FORMAT, skip_corrupt)
        self.frame.check_meta({"columns": dict})
        self.columns = {name: self._column(name, one) for name, one in self.meta["columns"].items()}
        self._ends = {
            name: np.concatenate([[0], self.frame.ends(f"columns/{name}.ends", of=f"columns/{name}")[:]])
            for name, column in self.columns.items()
            if column.shape is None
        }
        side = self.frame.whole("columns/_side").astype(np.uint64)
        self.fixed_sides = bool((side < _HASHED).any())
        held = np.where(side < _HASHED, side == 1, side % np.uint64(holdout_every) == fold)
        self.rows = {TRAIN: np.flatnonzero(~held), HELDOUT: np.flatnonzero(held)}

    def _column(self, name: str, described: Any) -> Column:
        try:
            dtype, shape = described
            return Column(str(dtype), None if shape is None else tuple(map(int, shape)))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.place}: meta.json is damaged at the column {name!r}; build it again") from error

    @staticmethod
    def held_out(name: str, holdout_every: int, fold: int) -> bool:
        """Whether the hash of a record's name holds it out."""
        return _hash(name) % holdout_every == fold

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of their numbers."""
        return self.meta.get("labels", [])

    def numbers(self, name: str, split: str) -> np.ndarray:
        """int64: all rows of a split, of a column of single numbers. Raises CorruptError, naming the file."""
        return self.frame.whole(f"columns/{name}").astype(np.int64)[self.rows[split]]

    def lengths(self, name: str, split: str) -> np.ndarray:
        """int64: the length of each row of a split, of a column whose rows differ."""
        return np.diff(self._ends[name])[self.rows[split]]

    def rows_of(
        self, names: Sequence[str], split: str, index: Sequence[int] | np.ndarray
    ) -> dict[str, list[np.ndarray]]:
        """Rows of some columns by their number in the split; with skip_corrupt the next row for one that is damaged."""
        index = np.asarray(index, np.int64)
        found = {name: self._try_read(name, split, index) for name in names}
        for number in range(len(index)):
            for turn in range(1, len(self.rows[split]) + 1):
                errors = [str(found[name][number]) for name in names if isinstance(found[name][number], CorruptError)]
                if not errors:
                    break
                self.lost[errors[0]] = self.lost.get(errors[0], 0) + 1
                other = [(index[number] + turn) % len(self.rows[split])]
                for name in names:
                    found[name][number] = self._try_read(name, split, other)[0]
            else:
                raise CorruptError(f"{self.place}: no row of {split} can be read; build the store again")
        return found  # type: ignore[return-value]

    def read(self, name: str, split: str, index: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Rows of a column by their number in the split. One batched read. Raises CorruptError, naming the file."""
        found = self._try_read(name, split, index)
        for one in found:
            if isinstance(one, CorruptError):
                raise one
        return found  # type: ignore[return-value]

    def _try_read(self, name: str, split: str, index: Sequence[int] | np.ndarray) -> list[np.ndarray | CorruptError]:
        shape, rows = self.columns[name].shape, self.rows[split][np.asarray(index, np.int64)]
        if shape is None:
            starts, stops = self._ends[name][rows], self._ends[name][rows + 1]
        else:
            size = int(np.prod(shape, dtype=np.int64))
            starts, stops = rows * size, (rows + 1) * size
        found = self.frame.try_read(f"columns/{name}", starts, stops)
        for one in found:
            if isinstance(one, CorruptError) and not self.skip_corrupt:
                raise one
        return [one if isinstance(one, CorruptError) or shape is None else one.reshape(shape) for one in found]
