"""The token store: one flat zarr3 array of tokens a split, read at random in windows.

    STORE/meta.json            what it holds and how it was made, with hashes
    STORE/tokenizer.json
    STORE/<split>/tokens/      zarr3, shards of 2^24 tokens, inner chunks of 4,096 with CRC-32C, uint16 or uint32
    STORE/<split>/ends/        zarr3 int64: for each document, the position after its last token

A split starts with the end token, and each document is followed by one: a document's tokens are predicted from
the end token before it, and its own end is predicted too.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

SHARD_TOKENS, CHUNK_TOKENS = 1 << 24, 4096
FORMAT = 1
TRAIN, HELDOUT = "train", "heldout"


def _spec(path: Path, dtype: str, shard: int, chunk: int, *, create: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    if create:
        checked = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": [chunk], "codecs": checked, "index_codecs": checked, "index_location": "end"}
        spec["metadata"] = {
            "shape": [0],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }
    return spec


class ArrayWriter:
    """Appends to a one-dimensional zarr3 array, a whole shard at a time."""

    def __init__(self, path: Path, dtype: str, shard: int = SHARD_TOKENS, chunk: int = CHUNK_TOKENS):
        self._array = ts.open(_spec(path, dtype, shard, chunk, create=True), create=True).result()
        self._dtype, self._shard = np.dtype(dtype), shard
        self._parts: list[np.ndarray] = []
        self._held = 0
        self.written = 0

    def append(self, values: np.ndarray) -> None:
        """Queues values; writes when a shard is full."""
        self._parts.append(values.astype(self._dtype))
        self._held += len(values)
        if self._held >= self._shard:
            whole = self._held // self._shard * self._shard
            held = np.concatenate(self._parts)
            self._write(held[:whole])
            self._parts, self._held = [held[whole:]], self._held - whole

    def _write(self, values: np.ndarray) -> None:
        end = self.written + len(values)
        self._array = self._array.resize(exclusive_max=[end], expand_only=True).result()
        self._array[self.written : end].write(values).result()
        self.written = end

    def close(self) -> None:
        """Writes what is queued."""
        if self._held:
            self._write(np.concatenate(self._parts))
            self._parts, self._held = [], 0


def open_array(path: Path, context: ts.Context) -> ts.TensorStore:
    """A finished array, for reading."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return ts.open(spec, context=context, read=True, recheck_cached=False).result()


class TokenStore:
    """A finished store. Reading is safe from many threads."""

    def __init__(self, path: Path):
        self.path = path
        self.meta: dict[str, Any] = json.loads((path / "meta.json").read_text())
        if self.meta["format"] != FORMAT:
            raise ValueError(
                f"{path}: store format {self.meta['format']}, this version reads {FORMAT}; delete it to rebuild"
            )
        self.context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 26}})
        self._open: dict[str, ts.TensorStore] = {}

    def tokens(self, split: str) -> ts.TensorStore:
        """The tokens of a split, a lazy array [N]."""
        return self._array(f"{split}/tokens")

    def document_ends(self, split: str) -> np.ndarray:
        """int64 [documents]: the position after each document's last token."""
        return self._array(f"{split}/ends").read().result()

    def _array(self, name: str) -> ts.TensorStore:
        if name not in self._open:
            self._open[name] = open_array(self.path / name, self.context)
        return self._open[name]

    def num_tokens(self, split: str) -> int:
        return self.meta["splits"][split]["tokens"]

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of text per token, end tokens counted as tokens: turns nats/token into bits/byte."""
        return self.meta["splits"][split]["bytes"] / max(self.num_tokens(split) - 1, 1)

    def windows(self, split: str, starts: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
        """int32 [len(starts), length] tokens from each start. One batched read; a flipped bit raises."""
        array = self.tokens(split)
        with ts.Batch() as batch:
            reads = [array[int(start) : int(start) + length].read(batch=batch) for start in starts]
        out = np.empty((len(reads), length), np.int32)
        for row, read in zip(out, reads, strict=True):
            row[:] = read.result()
        return out
