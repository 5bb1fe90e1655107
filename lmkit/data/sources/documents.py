"""Documents of files: texts with names, and what cannot be one."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lmkit.data.sources.files import File, damage, opened
from lmkit.data.sources.formats import Bad, decoded, has_rows, read_rows, sample_of, text_under

_MOST_WEIGHT = 1e30  # stores keep float32


class Document(NamedTuple):
    """A text and the name it keeps on every machine: the hold-out split hashes it.

    weights: None, a weight of the loss for all of it, or [first char, end char, weight] of spans.
    """

    name: str
    text: str
    weights: Any = None


class Keys(NamedTuple):
    """The fields of a record that are read."""

    text: str
    id: str = ""
    weight: str = ""

    @property
    def columns(self) -> dict[str, str]:
        """These fields, each with the configuration key that chooses another."""
        return {name: f"data.{which}_key" for which, name in self._asdict().items() if name}


Reader = Callable[[File, Keys], Iterator[Document | Bad]]


def read_text_file(file: File, keys: Keys) -> Iterator[Document | Bad]:
    """A document for each row of a file of rows; any other file is one document."""
    if not has_rows(file.url):
        yield from read_plain(file, keys)
        return
    for one in read_rows(file, keys.columns):
        yield one if isinstance(one, Bad) else document_of(one.fields, keys, f"{file.name}:{one.number}", one.place)


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


def document_of(record: Any, keys: Keys, name: str, place: str) -> Document | Bad:
    """The document of a record with fields."""
    text = text_under(record, keys.text, "; set data.text_key=")
    if isinstance(text, Bad):
        return text._replace(place=place)
    try:
        name = _id_of(record, keys.id) if keys.id else name
        return Document(name, text, _weights_of(record, keys.weight, len(text)) if keys.weight else None)
    except _MalformedError as error:
        return Bad(place, str(error), sample_of(text))


class _MalformedError(Exception):
    pass


def _id_of(record: Any, key: str) -> str:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _MalformedError(f"has no name under {key!r} (data.id_key): {sample_of(value)}")
    if isinstance(found := text_under({key: str(value)}, key, ""), Bad):
        raise _MalformedError(f"{found.reason} (data.id_key)")
    return found


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
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_WEIGHT
