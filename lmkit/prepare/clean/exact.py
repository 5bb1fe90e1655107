"""Equal documents, by their hashes: of each the first stays, in the order of parts of a mixture, tasks and lines.

datatrove has an exact filter, too, but which copy it keeps is a matter of priorities in the metadata, and it wants an
index that is read whole by each task.
"""

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers import JsonlWriter

_HASH = np.dtype([("high", "<u8"), ("low", "<u8")])  # 128 bits: two of 10^15 texts collide once in 10^9 corpora
COPY = np.dtype([("file", "<u4"), ("line", "<u4"), ("first_file", "<u4"), ("first_line", "<u4")])


class Hash(PipelineStep):
    """Writes 16 bytes a document to NNNNN.bin, counted from `first`."""

    type, name = "exact", "hash"

    def __init__(self, folder: Path, first: int = 0):
        super().__init__()
        self.folder, self.first = folder, first

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.first + rank:05d}.bin").open("wb") as file:
            for document in data:
                file.write(hashlib.blake2b(document.text.encode(), digest_size=_HASH.itemsize).digest())
                yield document


class FindCopies(PipelineStep):
    """Writes copies of earlier documents to NNNNN.npy: those whose hash falls to this task. No documents go through.

    `earlier`: files of hashes of earlier parts of a mixture, numbered behind this part's; their documents come first.
    """

    type, name = "exact", "find"

    def __init__(self, hashes: Path, copies: Path, earlier: int = 0):
        super().__init__()
        self.hashes, self.copies, self.earlier = hashes, copies, earlier

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        parts = []
        for file in (*range(world_size, world_size + self.earlier), *range(world_size)):  # as many tasks hashed
            hashes = np.fromfile(self.hashes / f"{file:05d}.bin", _HASH)
            lines = np.flatnonzero(hashes["high"] % world_size == rank)
            parts.append((hashes[lines], np.full(len(lines), file), lines))
        hashes, files, lines = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((hashes["low"], hashes["high"]))  # stable: equal ones stay in the order of the corpus
        hashes, files, lines = hashes[order], files[order], lines[order]
        new = np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)]
        first = np.maximum.accumulate(np.where(new, np.arange(len(hashes)), 0))
        ours = ~new & (files < world_size)
        copies = np.empty(np.count_nonzero(ours), COPY)
        for name, values in (
            ("file", files),
            ("line", lines),
            ("first_file", files[first]),
            ("first_line", lines[first]),
        ):
            copies[name] = values[ours]
        self.copies.mkdir(parents=True, exist_ok=True)
        np.save(self.copies / f"{rank:05d}.npy", np.sort(copies, order=["file", "line"]))


class DropCopies(BaseFilter):
    """Takes the copies out. `owners`: of each file of earlier parts, as in FindCopies, the name of its part."""

    name = "exact"

    def __init__(self, copies: Path, exclusion_writer: JsonlWriter, owners: Sequence[str] = ()):
        super().__init__(exclusion_writer)
        self.copies, self.owners, self.line = copies, owners, -1
        self.reasons: dict[int, str] = {}

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        owners = [""] * world_size + [of_earlier(name) for name in self.owners]
        found = (row for part in range(world_size) for row in _lines(self.copies / f"{part:05d}.npy", rank))
        self.line, self.reasons = -1, {line: f"exact copy{owners[first]}" for line, first in found}
        yield from super().run(data, rank, world_size)

    def filter(self, doc: Document) -> tuple[bool, str]:
        self.line += 1
        return self.line not in self.reasons, self.reasons.get(self.line, "")


def of_earlier(part: str) -> str:
    """What a reason ends with where the document that stays is in an earlier part of the mixture."""
    return f" of a document in {part!r}"


def _lines(path: Path, file: int) -> list[tuple[int, int]]:
    """(line, file of the first) of a file's lines among copies sorted by file: only they are read."""
    copies = np.load(path, mmap_mode="r")
    low, high = (bisect.bisect_left(copies, at, key=lambda row: row["file"]) for at in (file, file + 1))
    return list(zip(copies["line"][low:high].tolist(), copies["first_file"][low:high].tolist(), strict=True))
