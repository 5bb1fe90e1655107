"""A token store in memory, for tests of orders and rows: documents of given lengths, no files."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmkit.data.store.tokens import TRAIN

END = 256


class Stream:
    """What rows need of a store."""

    weighed = False

    def __init__(self, lengths: Sequence[int]):
        lengths_ = np.asarray(lengths, np.int64)
        self.ends = np.cumsum(lengths_ + 1)
        self.all = np.full(int(self.ends[-1]) + 1, END, np.int32)
        rng = np.random.default_rng(len(lengths))
        for end, length in zip(self.ends, lengths_, strict=True):
            self.all[end - length : end] = rng.integers(0, 250, length)

    def num_tokens(self, split: str) -> int:
        return len(self.all)

    def document_ends(self, split: str) -> np.ndarray:
        assert split == TRAIN
        return self.ends

    def lazy_ends(self, split: str) -> np.ndarray:
        return self.document_ends(split)

    @property
    def identity(self) -> list[Any]:
        return [zlib.crc32(self.all.tobytes()), len(self.all)]

    def document_name(self, split: str, number: int) -> str:
        return f"doc{number}"

    def try_read(self, split: str, starts: Any, stops: Any) -> tuple[list[np.ndarray], np.ndarray]:
        assert split == TRAIN
        assert (np.asarray(starts) >= 0).all()
        assert (np.asarray(stops) <= len(self.all)).all(), "beyond the end"
        return [self.all[start:stop] for start, stop in zip(starts, stops, strict=True)], np.ones(len(starts), bool)

    def try_windows(self, split: str, starts: Any, length: int) -> tuple[np.ndarray, np.ndarray]:
        rows, good = self.try_read(split, starts, np.asarray(starts) + length)
        return np.stack(rows), good

    def windows(self, split: str, starts: Any, length: int) -> np.ndarray:
        return self.try_windows(split, starts, length)[0]

    def weights(self, split: str, starts: Any, stops: Any) -> list[np.ndarray]:
        return [np.ones(stop - start, np.float32) for start, stop in zip(starts, stops, strict=True)]


class Weighed(Stream):
    """Token n of a split weighs n + 1; both splits are the same."""

    weighed = True

    def try_read(self, split: str, starts: Any, stops: Any) -> tuple[list[np.ndarray], np.ndarray]:
        return super().try_read(TRAIN, starts, stops)

    def weights(self, split: str, starts: Any, stops: Any) -> list[np.ndarray]:
        return [np.arange(start, stop, dtype=np.float32) + 1 for start, stop in zip(starts, stops, strict=True)]
