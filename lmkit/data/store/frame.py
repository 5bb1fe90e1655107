"""The frame that every store is made of: named one-dimensional arrays, written in parts by as many writers.

    STORE/meta.json                what it holds; it is written last, so a folder with it is whole
    STORE/files.json               the size and the CRC-32 of every other file
    STORE/parts/<part>/part.json   the lengths of the part's arrays, and what its maker says of it
    STORE/parts/<part>/<array>/    zarr3, in shards of 2^24 values whose chunks of 4,096 have a CRC-32C each

To a reader the parts of an array are one array. It may lie on a disk or in an object store.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from lmkit.config.base import ConfigError, UserError
from lmkit.data.store.places import context, kvstore_of, missing_files
from lmkit.files import is_checksum

META, FILES = "meta.json", "files.json"
Positions = Sequence[int] | np.ndarray
_CORRUPT = ("DATA_LOSS", "does not exist", "OUT_OF_RANGE")


_REBUILD = "build the store again, or fetch it again"
_PLACE = re.compile(r"[\w.-]+(/[\w.-]+)*")


class CorruptError(UserError):
    """A file of a store that is not what was written."""


class _Piece(NamedTuple):
    """Where a part of an array stands among its parts."""

    part: int
    first: int  # position in the whole of the first value that counts
    skip: int  # values before it


class Frame:
    """A finished store's arrays, for reading. Safe from many threads, and it can be sent to another process.

    Args:
        place: a folder, or s3://BUCKET/PATH, gs://BUCKET/PATH, http(s)://HOST/PATH.
        cache_bytes: of decoded chunks that are kept.
        lead: arrays whose parts begin with so many values that count in the first part alone.
    """

    def __init__(self, place: str | Path, cache_bytes: int, lead: Mapping[str, int] | None = None):
        self.place, self._cache_bytes, self._lead = str(place).rstrip("/"), cache_bytes, dict(lead or {})
        self._connect()
        self.meta = self._read_meta()
        self._gone: set[str] = set()  # files that `missing` found missing

    def _connect(self) -> None:
        self._context = context(self._cache_bytes)
        self._open: dict[tuple[int, str], ts.TensorStore] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        self._layouts: dict[str, tuple[list[_Piece], np.ndarray, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("place", "_cache_bytes", "_lead", "meta", "_gone")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._connect()

    def _read_meta(self) -> dict[str, Any]:
        """What the store says of itself. Raises ConfigError where that is damaged, or a part lies elsewhere."""
        meta = self.read_json(META)
        parts: list[Any] = meta["parts"] if isinstance(meta.get("parts"), list) else [None]
        good = all(map(_is_part, parts)) and len({part["name"] for part in parts}) == len(parts)
        if meta.get("format") != 1 and not good:
            raise ConfigError(f"{self.place}/{META} is damaged: its parts are not as they were written; {_REBUILD}")
        return meta

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a file of the store. Raises ConfigError where it cannot be read, or is none."""
        try:
            found = json.loads(self.read_file(name))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{self.place}/{name} is damaged: {error}; {_REBUILD}") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{self.place}/{name} is damaged: it holds no object; {_REBUILD}")
        return found

    def check_meta(self, values: Mapping[str, type | tuple[type, ...]]) -> None:
        """Raises ConfigError where meta.json lacks a value, by its path in dots, or has another kind of value there."""
        for name, kind in values.items():
            found: Any = self.meta
            for step in name.split("."):
                found = found.get(step) if isinstance(found, dict) else None
            if not isinstance(found, kind) or isinstance(found, bool):
                raise ConfigError(f"{self.place}/{META} is damaged: {name} is {found!r:.40}; {_REBUILD}")

    def files(self) -> dict[str, list[int]]:
        """Size and CRC-32 of every file but this list and meta.json. Raises ConfigError where it is damaged."""
        found = self.read_json(FILES)
        for name, one in found.items():
            if not is_checksum(one) or not _PLACE.fullmatch(name) or ".." in name.split("/"):
                raise ConfigError(f"{self.place}/{FILES} is damaged at {name!r:.60}; {_REBUILD}")
        return found

    def read_file(self, name: str) -> bytes:
        """The bytes of a file of the store. Raises ConfigError where it cannot be read."""
        try:
            found = ts.KvStore.open(kvstore_of(self.place), context=self._context).result().read(name).result()
        except ValueError as error:
            raise ConfigError(f"{self.place}: cannot read {name}: {_words(error)}") from error
        if found.state != "value":
            raise ConfigError(f"{self.place} is no finished store: it has no {name}; python -m lmkit.prepare makes one")
        return bytes(found.value)

    def missing(self) -> list[str]:
        """Files that were written and are gone: TensorStore would read the fill value there."""
        gone = missing_files(self.place, self.files, self._context)
        self._gone = set(gone)
        return gone

    def require(self, version: int, skip_corrupt: bool) -> None:
        """Raises ConfigError where the store is of another format, CorruptError where a file of it is gone."""
        if self.meta.get("format") != version:
            raise ConfigError(
                f"{self.place}: store format {self.meta.get('format')!r:.40}, this version reads {version}; delete it "
                f"to rebuild"
            )
        if (gone := self.missing()) and not skip_corrupt:
            raise CorruptError(f"{self.place}/{gone[0]} is missing ({len(gone)} files are); build the store again")

    def length(self, name: str) -> int:
        """Values of an array in all parts together."""
        lengths = self._lengths(name)
        lead = self._lead.get(name, 0)
        return sum(lengths) - lead * max(sum(n > 0 for n in lengths) - 1, 0)

    def _lengths(self, name: str) -> list[int]:
        return [part["arrays"].get(name, 0) for part in self.meta["parts"]]

    def pieces(self, name: str) -> list[_Piece]:
        """Where the parts of an array begin in the whole; parts that lack it are left out."""
        if name not in self._pieces:
            pieces, first = [], 0
            for number, length in enumerate(self._lengths(name)):
                if length:
                    skip = self._lead.get(name, 0) if pieces else 0
                    pieces.append(_Piece(number, first, skip))
                    first += length - skip
            self._pieces[name] = pieces
        return self._pieces[name]

    def _layout(self, name: str) -> tuple[list[_Piece], np.ndarray, int]:
        """The pieces of an array, where each begins, and its length."""
        if name not in self._layouts:
            pieces = self.pieces(name)
            self._layouts[name] = pieces, np.array([piece.first for piece in pieces]), self.length(name)
        return self._layouts[name]

    def whole(self, name: str) -> np.ndarray:
        """All of an array; empty float64 where no part has it."""
        size = self.length(name)
        return self.read(name, [0], [size])[0] if size else np.empty(0)

    def ends(self, name: str, of: str) -> "Ends":
        """int64: positions in the whole of array `of`, kept by each part as positions in its own; read by slices."""
        return Ends(self, name, of)

    def read(self, name: str, starts: Positions, stops: Positions) -> list[np.ndarray]:
        """The values of an array from each start to each stop, in one batched read.

        Raises CorruptError, naming the file, for what is not as it was written.
        """
        found = self.try_read(name, starts, stops)
        for one in found:
            if isinstance(one, CorruptError):
                raise one
        return found  # type: ignore[return-value]

    def try_read(self, name: str, starts: Positions, stops: Positions) -> list[np.ndarray | CorruptError]:
        """The same, with the error in the place of what cannot be read."""
        pieces, firsts, length = self._layout(name)
        if len(stops) and (most := int(np.max(stops))) > length:
            raise CorruptError(f"{self.place}: {name} has {length} values, and {most} are asked for; {_REBUILD}")
        plan: list[list[tuple[int, int, int]]] = []
        for start, stop in zip(starts, stops, strict=True):
            ranges, at = [], int(start)
            for number in range(int(np.searchsorted(firsts, at, side="right")) - 1, len(pieces)):
                if at >= stop and ranges:
                    break
                piece = pieces[number]
                last = pieces[number + 1].first if number + 1 < len(pieces) else length
                shift, end = piece.skip - piece.first, min(int(stop), last)
                ranges.append((piece.part, at + shift, end + shift))
                at = end
            plan.append(ranges)
        with ts.Batch() as batch:
            reads = [[(p, a, b, self._array(p, name)[a:b].read(batch=batch)) for p, a, b in one] for one in plan]
        return [self._result(name, one) for one in reads]

    def _result(self, name: str, reads: list[tuple[int, int, int, ts.Future]]) -> np.ndarray | CorruptError:
        values: list[np.ndarray] = []
        try:
            for part, start, stop, read in reads:
                values.append(read.result())
                if self._gone and (file := self._missing_of(name, part, start, stop)):
                    return CorruptError(f"{file} is missing; build the store again, or data.on_corrupt=skip")
        except ValueError as error:
            part, start, *_ = reads[len(values)]
            file = self._file(name, part, start, str(error))
            if not any(word in str(error) for word in _CORRUPT):
                raise ConfigError(f"{file}: cannot be read: {_words(error)}") from error
            return CorruptError(f"{file} is damaged: {_words(error)}; build the store again, or data.on_corrupt=skip")
        if len(values) == 1:
            return values[0]
        return np.concatenate(values) if values else np.empty(0)

    def _missing_of(self, name: str, part: int, start: int, stop: int) -> str:
        """A missing file that the values of a part from start to stop would be in; "" where they are there."""
        about = self.meta["parts"][part]
        shard = about["shards"][name]
        for number in range(start // shard, -(-stop // shard)):
            if (file := f"parts/{about['name']}/{name}/c/{number}") in self._gone:
                return f"{self.place}/{file}"
        return ""

    def _file(self, name: str, part: int, start: int, words: str) -> str:
        """The shard that an error is about: by its own words, else the one that was read first."""
        said = re.search(r"/c/(\d+)", words)
        number = said[1] if said else start // self.meta["parts"][part]["shards"][name]
        return f"{self.place}/parts/{self.meta['parts'][part]['name']}/{name}/c/{number}"

    def _array(self, part: int, name: str) -> ts.TensorStore:
        if (part, name) not in self._open:
            kvstore = kvstore_of(f"{self.place}/parts/{self.meta['parts'][part]['name']}/{name}")
            spec = {"driver": "zarr3", "kvstore": kvstore}
            try:
                opened = ts.open(spec, context=self._context, read=True, recheck_cached=False).result()
            except ValueError as error:
                raise ConfigError(f"{self.place}: cannot open part {part} of {name}: {_words(error)}") from error
            self._open[part, name] = opened
        return self._open[part, name]


class Ends:
    """An array of positions: `ends[2]`, `ends[-1]`, `ends[a:b]` and `len(ends)` read what they need, as int64."""

    def __init__(self, frame: Frame, name: str, of: str):
        there = {piece.part: piece.first - piece.skip for piece in frame.pieces(of)}
        self._frame, self._name, self._len = frame, name, frame.length(name)
        # a part of empty rows alone has none of the values
        self._parts = [(piece.first, there.get(piece.part, 0)) for piece in frame.pieces(name)]

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, at: slice | int) -> np.ndarray:
        if not isinstance(at, slice):
            at = range(self._len)[int(at)]
            return self[at : at + 1][0]
        start, stop, step = at.indices(self._len)
        if start >= stop:
            return np.empty(0, np.int64)
        values = self._frame.read(self._name, [start], [stop])[0].astype(np.int64, copy=False)
        for (first, shift), last in zip(self._parts, [*(f for f, _ in self._parts[1:]), self._len], strict=True):
            if shift and first < stop and last > start:
                values[max(first - start, 0) : last - start] += shift
        return values[::step]


def _is_part(part: Any) -> bool:
    """Whether this is what meta.json says of a part: a plain name, lengths of arrays, lengths of their shards."""
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        return False
    lengths, shards = part.get("arrays"), part.get("shards")
    if not isinstance(lengths, dict) or not isinstance(shards, dict) or "/" in part["name"] or part["name"] == "..":
        return False
    sized = all(type(one) is int and one >= 0 for one in lengths.values())
    sharded = all(type(shards.get(name)) is int and shards[name] > 0 for name in lengths)
    return sized and sharded and bool(_PLACE.fullmatch(part["name"]))


def _words(error: Exception) -> str:
    """An error of TensorStore's without where in its source it came from."""
    return re.sub(r"\s*\[[^\]]*source locations=[^\]]*\]|\s*\[tensorstore_spec=.*", "", str(error), flags=re.S)
