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
from lmkit.data.store.build import Progress, build_frame, one_by_one
from lmkit.data.store.records import RECORD_FORMAT, Column, RecordWriter

_TOGETHER = 256  # records encoded at a time


def build_record_store(
    path: Path, source: RecordSource, fields: list[Field], labels: list[str], tokenizer: str, progress: Progress
) -> None:
    """The store at `path`. Raises ConfigError where more records than data.max_bad_share cannot be used."""
    columns = {name: column for field in fields for name, column in field.columns.items()}

    def finish(_: Path, facts: list[dict]) -> dict[str, Any]:
        return {
            "format": RECORD_FORMAT, "labels": labels, "tokenizer_sha256": tokenizer, "sha256": facts[0]["sha256"],
            "count": facts[0]["count"], "columns": {name: list(column) for name, column in columns.items()},
            "unusable": facts[0]["bad"],
        }  # fmt: skip

    build_frame(path, 1, lambda _, tmp: _write(tmp, source, fields, columns, progress), finish, one_by_one)


def _write(
    folder: Path, source: RecordSource, fields: list[Field], columns: dict[str, Column], progress: Progress
) -> None:
    """The part of a record store. Raises ConfigError where too many records cannot be used."""
    writer, hasher = RecordWriter(folder, columns), hashlib.sha256()
    pending: list[Record] = []
    bad: list[Bad] = []
    first_pass: list[Bad] = []
    count, size = sum(1 for _ in source.records(first_pass.append)) + len(first_pass), max(source.num_bytes, 1)
    most = source.config.max_bad_share

    def flush() -> None:
        for record, row in _encoded(pending, fields, bad):
            for value in row.values():
                hasher.update(np.ascontiguousarray(value).tobytes())
            writer.append(record.name, record.heldout, row)
        done = writer.count + len(bad)
        if not writer.count and len(bad) > most * count:  # none is good, and reading on cannot help
            raise ConfigError(f"data: {bad[0].place} {bad[0].reason}; so it is with all of the first {done} records")
        progress("reading the records", size * done // max(count, 1), size)
        pending.clear()

    for record in source.records(bad.append):
        pending.append(record)
        if len(pending) == _TOGETHER:
            flush()
    flush()
    first = f"the first: {bad[0].place} {bad[0].reason}" if bad else ""
    check_share(len(bad), len(bad) + writer.count, most, first)
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
