"""Writes the arrays of one part of a store: see frame.py."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from lmkit.data.sources.formats import Bad
from lmkit.files import write_json, write_text
from lmkit.redact import redact, redact_text

PART, QUARANTINE = "part.json", "quarantine.jsonl"
SHARD, CHUNK = 1 << 24, 4096


class Array(NamedTuple):
    """How an array is kept. What a missing file would read as is `fill`."""

    dtype: str
    shard: int = SHARD
    chunk: int = CHUNK
    fill: int = 0


class ArrayWriter:
    """Appends to a one-dimensional zarr3 array, whole shards at a time."""

    def __init__(self, path: Path, how: Array):
        checked = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": [how.chunk], "codecs": checked, "index_codecs": checked, "index_location": "end"}
        metadata = {
            "shape": [0],
            "data_type": how.dtype,
            "fill_value": how.fill,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [how.shard]}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }
        kvstore = {"driver": "file", "path": str(path)}
        self._array = ts.open({"driver": "zarr3", "kvstore": kvstore, "metadata": metadata}, create=True).result()
        self._dtype, self._shard = np.dtype(how.dtype), how.shard
        self._queued: list[np.ndarray] = []
        self._held = 0
        self.written = 0

    def append(self, values: np.ndarray) -> None:
        """Queues values; writes when a shard is full."""
        self._queued.append(values.astype(self._dtype))
        self._held += len(values)
        if self._held >= self._shard:
            whole = self._held // self._shard * self._shard
            held = np.concatenate(self._queued)
            self._write(held[:whole])
            self._queued, self._held = [held[whole:]], self._held - whole

    def _write(self, values: np.ndarray) -> None:
        end = self.written + len(values)
        self._array = self._array.resize(exclusive_max=[end], expand_only=True).result()
        self._array[self.written : end].write(values).result()
        self.written = end

    def close(self) -> int:
        """Writes what is queued; returns the length of the array."""
        if self._held:
            self._write(np.concatenate(self._queued))
            self._queued, self._held = [], 0
        return self.written


class PartWriter:
    """The arrays of one part. Those that stay empty are not written."""

    def __init__(self, folder: Path, arrays: Mapping[str, Array]):
        self.folder, self.how = folder, dict(arrays)
        self._arrays: dict[str, ArrayWriter] = {}

    def append(self, name: str, values: np.ndarray) -> None:
        """Values at the end of an array."""
        if len(values):
            if name not in self._arrays:
                self._arrays[name] = ArrayWriter(self.folder / name, self.how[name])
            self._arrays[name].append(values)

    def close(self, facts: Mapping[str, Any], bad: Sequence[Bad] = ()) -> None:
        """Writes what is queued, the records that cannot be used, and part.json: with it the part is finished."""
        if bad:
            lines = (json.dumps(redact(one._asdict()), ensure_ascii=False) + "\n" for one in bad)
            write_text(self.folder / QUARANTINE, "".join(lines))
        first = redact_text(f"{bad[0].place} {bad[0].reason}") if bad else ""
        lengths = {name: array.close() for name, array in self._arrays.items()}
        shards = {name: how.shard for name, how in self.how.items() if name in lengths}
        facts = dict(facts) | {"bad": len(bad), "first_bad": first}
        write_json(self.folder / PART, {"arrays": lengths, "shards": shards, "facts": facts})
