"""What files hold: rows with fields, and what cannot be used. The one place that decides what is malformed."""

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeVar

from lmkit.config.base import ConfigError
from lmkit.data.sources.files import PACKED, File, damage, opened, unpacked_ending

LINES, TABLES, JSON = (".jsonl",), (".csv", ".tsv"), (".json",)
T = TypeVar("T")
_SAMPLE_CHARS = 200
_COUNTED = 1 << 23  # bytes whose line ends are counted at a time
_FIELD_CHARS = 1 << 30  # of a field of a .csv; the csv module's own limit is 131,072
_HALVES = re.compile("[\ud800-\udfff]")  # JSON may spell them, UTF-8 cannot hold them


class Bad(NamedTuple):
    """A record that cannot be used: where it stands, what is wrong with it, how it begins."""

    place: str
    reason: str
    sample: str


class Row(NamedTuple):
    """One record of a file: its number from 1 (of .jsonl the number of its line), its fields, where it stands."""

    number: int
    fields: dict[str, Any]
    place: str


def with_packed(*suffixes: str) -> tuple[str, ...]:
    """Suffixes, and the same with those of compressed files."""
    return (*suffixes, *(f"{one}{packed}" for one in suffixes for packed in PACKED))


def has_rows(url: str) -> bool:
    """Whether a file is read as rows, by how its name ends."""
    return unpacked_ending(url).endswith((*_READERS, ".parquet"))


def read_rows(file: File, columns: Mapping[str, str] | None = None) -> Iterator[Row | Bad]:
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file, and in their places what cannot be used.

    Args:
        columns: the fields that a table must have, each with the configuration key that chooses another; of .parquet
            only these are read. None: all fields, none of which a table must have.

    Raises ConfigError for a file that cannot be reached, or where a package is missing.
    """
    name = unpacked_ending(file.url)
    read = next((reader for suffix, reader in _READERS.items() if name.endswith(suffix)), _parquet)
    word, last = "line" if read is _jsonl else "record", 0
    try:
        with opened(file.url, packed=read is not _parquet) as handle:
            for number, found in read(handle, file, columns or {}):
                place, last = f"{file.url} {word} {number}" if number else file.url, number
                yield found._replace(place=place) if isinstance(found, Bad) else Row(number, found, place)
    except Exception as error:
        yield Bad(f"{file.url} after {word} {last}", damage(error), "")


Found = Iterator[tuple[int, dict[str, Any] | Bad]]  # the number of a record, 0 for the file as a whole


def _jsonl(handle: BinaryIO, file: File, _: Mapping[str, str]) -> Found:
    for number, line in lines_of(handle, file.span):
        yield number, parse_object(line)


def _json(handle: BinaryIO, file: File, _: Mapping[str, str]) -> Found:
    """An array of objects, one object, or (as many such files are) an object a line."""
    data = handle.read()
    text = decoded(data)
    if isinstance(text, Bad):
        yield 0, text
        return
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":
            yield from _jsonl(io.BytesIO(data), file, {})
        else:
            yield 0, Bad("", f"is not JSON: {error}", sample_of(text.strip()))
        return
    for number, one in enumerate(found if isinstance(found, list) else [found], 1):
        yield number, one if isinstance(one, dict) else _no_object(one, one)


def _csv(handle: BinaryIO, file: File, columns: Mapping[str, str]) -> Found:
    """Rows under a header. Bytes that are not UTF-8 and quotes that do not close spoil their own row alone."""
    csv.field_size_limit(_FIELD_CHARS)
    text = io.TextIOWrapper(handle, "utf-8-sig", errors="surrogateescape", newline="")
    delimiter = "\t" if unpacked_ending(file.url).endswith(".tsv") else ","
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header, number = next(rows, []), 0
    except csv.Error as error:
        yield 0, Bad("", f"has no header that can be read: {error}", "")
        return
    if problem := _bad_bytes(header, ["header"] * len(header)) or missing_columns(header, columns):
        yield 0, problem
        return
    if twice := [name for name in header if name and header.count(name) > 1]:
        yield 0, Bad("", f"has two columns named {twice[0]!r}: rename one", sample_of(header))
        return
    while True:
        try:
            values = next(rows, None)
        except csv.Error as error:
            number += 1
            yield number, Bad("", f"is no row of a .csv: {error}; quote its fields, and double quotes in them", "")
            continue
        if values is None:
            return
        if not values:
            continue
        number += 1
        if len(values) > len(header) and any(values[len(header) :]):
            reason = f"has {len(values)} fields, the header {len(header)}: put quotes around a field that holds a comma"
            yield number, Bad("", reason, sample_of(values))
        else:
            values += [None] * (len(header) - len(values))  # type: ignore[list-item]
            yield number, _bad_bytes(values, header) or dict(zip(header, values, strict=False))


def _bad_bytes(values: Sequence[str | None], names: Sequence[str]) -> Bad | None:
    for value, name in zip(values, names, strict=False):
        if value and (found := _HALVES.search(value)):
            reason = f"is not UTF-8: byte {ord(found[0]) & 0xFF:#04x} in {name!r} (iconv -t utf-8 converts a file)"
            return Bad("", reason, sample_of(value.encode(errors="surrogateescape")))
    return None


def _parquet(handle: BinaryIO, file: File, columns: Mapping[str, str]) -> Found:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"data: reading {file.url} needs pyarrow: pip install 'lmkit[parquet]'") from error
    table, number = parquet.ParquetFile(handle), 0
    if problem := missing_columns(table.schema_arrow.names, columns):
        yield 0, problem
        return
    for batch in table.iter_batches(columns=list(columns) or None, batch_size=1024):
        for fields in batch.to_pylist():
            number += 1
            yield number, fields


_READERS: dict[str, Callable[[BinaryIO, File, Mapping[str, str]], Found]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv,
}  # fmt: skip


def missing_columns(has: list[str], columns: Mapping[str, str]) -> Bad | None:
    """What is wrong with a table that lacks a column."""
    if gone := [name for name in columns if name not in has]:
        hint = f"; set {columns[gone[0]]}=" if columns[gone[0]] else ""
        return Bad("", f"has no column {gone[0]!r}, it has: {', '.join(has)}{hint}", "")
    return None


def sample_of(value: Any) -> str:
    """The beginning of something, as printable text on one line."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value[: 4 * _SAMPLE_CHARS]).decode("utf-8", errors="backslashreplace")
    text = value if isinstance(value, str) else repr(value)
    return text[:_SAMPLE_CHARS].encode("utf-8", errors="backslashreplace").decode()


def decoded(data: bytes) -> str | Bad:
    """Bytes as text, without a byte order mark; a Bad without a place where they are not UTF-8."""
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        at = error.start + (len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0)
        return Bad("", f"is not UTF-8: byte {data[at]:#04x} at {at} (iconv -t utf-8 converts a file)", sample_of(data))


def lines_of(handle: BinaryIO, span: tuple[int, int] | None = None) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines that are not blank; with `span` those that begin between two bytes."""
    number, place = 0, 0
    if span and span[0]:
        while block := handle.read(min(_COUNTED, span[0] - 1 - place)):
            number, place = number + block.count(b"\n"), place + len(block)
        number, place = number + 1, place + len(handle.readline())  # it began before
    for number, line in enumerate(handle, number + 1):  # noqa: B020
        if span and place >= span[1]:
            return
        place += len(line)
        if line.strip():
            yield number, line


def parse_object(line: bytes) -> dict[str, Any] | Bad:
    """A line of JSON; a Bad without a place where it is no object."""
    text = decoded(line)
    if isinstance(text, Bad):
        return text
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Bad("", f"is not JSON: {error}", sample_of(line.strip()))
    return record if isinstance(record, dict) else _no_object(record, line.strip())


def _no_object(value: Any, shown: Any) -> Bad:
    return Bad("", f"is a {type(value).__name__}, not an object with fields", sample_of(shown))


def text_under(fields: Mapping[str, Any], key: str, hint: str) -> str | Bad:
    """The text of a field; a Bad without a place where there is none, or UTF-8 cannot hold it."""
    text = fields.get(key)
    if not isinstance(text, str):
        has = ", ".join(map(str, fields))
        return Bad("", f"has no text under {key!r}, it has: {has}{hint}", sample_of(fields))
    return half_in(text, key) or text


def half_in(value: Any, key: str) -> Bad | None:
    """What is wrong with a field whose texts hold half a character."""
    if isinstance(value, str):
        if not _HALVES.search(value):
            return None
        return Bad("", f"has half a character (a lone surrogate) under {key!r}", sample_of(value))
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((bad for one in parts if (bad := half_in(one, key))), None)


def usable(found: Iterable[T | Bad], bad: Callable[[Bad], None] | None) -> Iterator[T]:
    """What can be used, in order. The rest goes to `bad`; without it the first such record is a ConfigError."""
    for one in found:
        if not isinstance(one, Bad):
            yield one
        elif bad is None:
            raise ConfigError(f"data: {one.place} {one.reason}")
        else:
            bad(one)


def check_share(bad: int, records: int, most: float, where: str) -> None:
    """Raises ConfigError where more than the share `most` of the records cannot be used."""
    if bad > most * records:
        share = min(1.0, math.ceil(round(bad / records * 100, 6)) / 100)
        raise ConfigError(
            f"data: {bad} of {records} records ({bad / records:.2%}) cannot be used, more than data.max_bad_share="
            f"{most}; {where}: mend them, or set data.max_bad_share={share}"
        )
