"""Builds a store of labelled records from a source; records that cannot be used are left out and listed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.data.batches.fields import Batch, Field
from lmkit.data.sources.files import UnreachableError
from lmkit.data.sources.formats import Bad, check_share, sample_of
from lmkit.data.sources.records import Record, RecordSource
from lmkit.data.store.build import MOST_PARTS, Progress, Runner, build_frame, one_by_one
from lmkit.data.store.records import RECORD_FORMAT, RecordWriter

PART_BYTES = 1 << 26  # of a source's files that a part takes, at least: records of one label are small
_TOGETHER = 256  # records encoded at a time


def build_record_store(
    path: Path, source: RecordSource, fields: list[Field], labels: list[str], tokenizer: str, count: int,
    progress: Progress, run: Runner = one_by_one,
) -> None:  # fmt: skip
    """The store at `path`, of `count` records. Raises ConfigError where more than data.max_bad_share cannot be used."""
    write = WriteRecords(source, fields, count, progress)

    def finish(_: Path, facts: list[dict]) -> dict[str, Any]:
        good, bad = sum(one["count"] for one in facts), sum(one["bad"] for one in facts)
        first = next((one["first_bad"] for one in facts if one["bad"]), "")
        check_share(bad, bad + good, source.config.max_bad_share, f"the first: {first}" if bad else "")
        hashes = [one["sha256"] for one in facts]
        sha = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        return {
            "format": RECORD_FORMAT, "labels": labels, "tokenizer_sha256": tokenizer, "sha256": sha, "count": good,
            "columns": {name: list(column) for name, column in write.columns.items()}, "unusable": bad,
        }  # fmt: skip

    build_frame(path, write.parts, write, finish, run)


class WriteRecords:
    """Writes parts of a record store. It can be sent to another process, where it tells of no progress."""

    def __init__(self, source: RecordSource, fields: list[Field], count: int, progress: Progress):
        self.source, self.fields, self.count, self.progress = source, fields, count, progress
        self.columns = {name: column for field in fields for name, column in field.columns.items()}
        self.parts, self.done = source.num_parts(PART_BYTES, MOST_PARTS), 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"progress": None}

    def __call__(self, number: int, folder: Path) -> None:
        """The part of this number. Raises ConfigError where none of more records than may be bad can be used."""
        writer, hasher = RecordWriter(folder, self.columns), hashlib.sha256()
        pending: list[Record] = []
        bad: list[Bad] = []

        def flush() -> None:
            found = _encoded(pending, self.fields, bad)
            hasher.update(b"".join(np.ascontiguousarray(one).tobytes() for _, row in found for one in row.values()))
            writer.extend([(record.name, record.heldout) for record, _ in found], [row for _, row in found])
            done = writer.count + len(bad)
            if not writer.count and len(bad) > self.source.config.max_bad_share * self.count:  # reading on cannot help
                raise ConfigError(
                    f"data: {bad[0].place} {bad[0].reason}; so it is with all of the first {done} records"
                )
            if self.progress:
                size = max(self.source.num_bytes, 1)
                self.progress("reading the records", size * (self.done + done) // max(self.count, 1), size)
            pending.clear()

        for record in self.source.records(bad.append, number, self.parts):
            pending.append(record)
            if len(pending) == _TOGETHER:
                flush()
        flush()
        self.done += writer.count + len(bad)
        first = f"the first: {bad[0].place} {bad[0].reason}" if bad else ""
        check_share(len(bad), self.count, self.source.config.max_bad_share, first)  # too many for all parts together
        writer.close({"sha256": hasher.hexdigest()}, bad)


def _encoded(records: Sequence[Record], fields: list[Field], bad: list[Bad]) -> list[tuple[Record, Batch]]:
    """Records with their columns. Those that cannot be encoded go to `bad`, found by halving the list."""
    try:
        rows = list(zip(*(field.encode(records) for field in fields), strict=True))
    except UnreachableError:
        raise
    except ConfigError as error:
        if len(records) > 1:
            middle = len(records) // 2
            return [one for half in (records[:middle], records[middle:]) for one in _encoded(half, fields, bad)]
        place, reason = records[0].place, str(error).removeprefix("data: ")
        reason = reason.removeprefix(place).lstrip(": ") if reason.startswith(place) else f"cannot be used: {reason}"
        bad.append(Bad(place, reason, sample_of(records[0].fields)))
        return []
    joined = [{name: value for piece in pieces for name, value in piece.items()} for pieces in rows]
    return list(zip(records, joined, strict=True))
