"""What files hold: documents, and records that cannot be used. The one place that decides what is malformed."""

import codecs
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from lmkit.config.base import ConfigError
from lmkit.data.sources.files import File, damage, opened

_SAMPLE_CHARS = 200
_HALVES = re.compile("[\ud800-\udfff]")  # JSON may spell them, UTF-8 cannot hold them


class Document(NamedTuple):
    """A text and the name it keeps on every machine: the hold-out split hashes it.

    weights: None, a weight of the loss for all of it, or [first char, end char, weight] of spans.
    """

    name: str
    text: str
    weights: Any = None


class Bad(NamedTuple):
    """A record that cannot be used: where it stands, what is wrong with it, how it begins."""

    place: str
    reason: str
    sample: str


class Keys(NamedTuple):
    """The fields of a record that are read."""

    text: str
    id: str = ""
    weight: str = ""


Reader = Callable[[File, Keys], Iterator[Document | Bad]]


def read_text_file(file: File, keys: Keys) -> Iterator[Document | Bad]:
    """A file of text, of JSON lines or a parquet table, by how its name ends."""
    if file.url.endswith(".parquet"):
        return read_parquet(file, keys)
    if file.url.removesuffix(".gz").removesuffix(".zst").endswith(".jsonl"):
        return read_jsonl(file, keys)
    return read_plain(file, keys)


def sample_of(value: Any) -> str:
    """The beginning of something, as printable text on one line."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value[: 4 * _SAMPLE_CHARS]).decode("utf-8", errors="backslashreplace")
    text = value if isinstance(value, str) else repr(value)
    return text[:_SAMPLE_CHARS].encode("utf-8", errors="backslashreplace").decode()


def decoded(data: bytes) -> str | Bad:
    """Bytes as text; a Bad without a place where they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return Bad("", f"is not UTF-8: byte {data[error.start]:#04x} at {error.start}", sample_of(data))


def read_plain(file: File, keys: Keys) -> Iterator[Document | Bad]:
    """One document: all of the file."""
    try:
        with opened(file.url) as handle:
            data = handle.read()
    except Exception as error:
        yield Bad(file.url, damage(error), "")
        return
    text = decoded(data)
    yield text._replace(place=file.url) if isinstance(text, Bad) else Document(file.name, text)


def read_tree_file(file: File, keys: Keys) -> Iterator[Document | Bad]:
    """A file of a tree, whatever it is called: text, or not."""
    for one in read_plain(file, keys):
        if isinstance(one, Document) and "\0" in one.text:
            yield Bad(file.url, f"is not text: a zero byte at {one.text.index(chr(0))}", sample_of(one.text))
        else:
            yield one


def lines_of(handle: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines that are not blank, the first without a byte order mark."""
    for number, line in enumerate(handle, 1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
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
    if not isinstance(record, dict):
        return Bad("", f"is a {type(record).__name__}, not an object with fields", sample_of(line.strip()))
    return record


def read_jsonl(file: File, keys: Keys) -> Iterator[Document | Bad]:
    """A document a line."""
    number = 0
    try:
        with opened(file.url) as handle:
            for number, line in lines_of(handle):
                place, record = f"{file.url} line {number}", parse_object(line)
                if isinstance(record, Bad):
                    yield record._replace(place=place)
                else:
                    yield document_of(record, keys, f"{file.name}:{number}", place)
    except Exception as error:
        yield Bad(f"{file.url} after line {number}", damage(error), "")


def read_parquet(file: File, keys: Keys) -> Iterator[Document | Bad]:
    """A document a row."""
    number = 0
    try:
        with opened(file.url, packed=False) as handle:
            table = open_parquet(handle, file.url)
            has = table.schema_arrow.names
            if missing := [name for name in keys if name and name not in has]:
                field = f"data.{keys._fields[keys.index(missing[0])]}_key"
                yield Bad(file.url, f"has no column {missing[0]!r}, it has: {', '.join(has)}; set {field}=", "")
                return
            for batch in table.iter_batches(columns=[name for name in keys if name], batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield document_of(record, keys, f"{file.name}:{number}", f"{file.url} record {number}")
    except Exception as error:
        yield Bad(f"{file.url} after record {number}" if number else file.url, damage(error), "")


def open_parquet(handle: BinaryIO, url: str) -> Any:
    """A pyarrow ParquetFile. Raises ConfigError where pyarrow is missing."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"data: reading {url} needs pyarrow: pip install 'lmkit[parquet]'") from error
    return parquet.ParquetFile(handle)


def document_of(record: Any, keys: Keys, name: str, place: str) -> Document | Bad:
    """The document of a record with fields."""
    text = record.get(keys.text)
    try:
        if not isinstance(text, str):
            raise _MalformedError(f"has no text under {keys.text!r}, it has: {', '.join(record)}; set data.text_key=")
        if _HALVES.search(text):
            raise _MalformedError(f"has half a character (a lone surrogate) under {keys.text!r}")
        name = _id_of(record, keys.id) if keys.id else name
        return Document(name, text, _weights_of(record, keys.weight, len(text)) if keys.weight else None)
    except _MalformedError as error:
        return Bad(place, str(error), sample_of(text if isinstance(text, str) else record))


class _MalformedError(Exception):
    pass


def _id_of(record: Any, key: str) -> str:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _MalformedError(f"has no name under {key!r} (data.id_key): {sample_of(value)}")
    return str(value)


def _weights_of(record: Any, key: str, chars: int) -> Any:
    """None, a number, or a list of [first, end, weight]."""
    value = record.get(key)
    if value is None or _is_weight(value):
        return value
    spans = []
    for span in value if isinstance(value, list) else [None]:
        if not isinstance(span, list) or len(span) != 3 or not all(map(_is_weight, span)):
            raise _MalformedError(
                f"has {sample_of(value)} under {key!r} (data.weight_key), not a number of at least 0 or a list of "
                f"[first char, end char, weight]"
            )
        first, end, weight = int(span[0]), int(span[1]), span[2]
        if (first, end) != (span[0], span[1]) or not first <= end <= chars:
            raise _MalformedError(
                f"has the span {span} under {key!r} (data.weight_key), with {chars} characters of text"
            )
        spans.append([first, end, weight])
    return spans


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
