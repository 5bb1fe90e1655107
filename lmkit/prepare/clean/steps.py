"""Steps that datatrove's pipelines lack: our sources, normalisation, language without a download, counts."""

import functools
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.writers import JsonlWriter

from lmkit.data.sources.formats import Bad
from lmkit.data.sources.text import TextSource
from lmkit.prepare.clean.pii import Scrub
from lmkit.redact import redact

_LANGUAGE_CHARS = 10_000  # of a text tell its language; the whole of a novel takes 0.2 s
_SPACES = re.compile(r"[^\S\n]+")
_BLANK = re.compile(r"\n{3,}")
_LINE_ENDS = re.compile(r" *(?:\r\n|[\n\r\x85\u2028\u2029\x0b\x0c]) *")
# Controls, soft hyphens, marks that turn the direction, private use: nothing that is read.
_UNREAD = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")  # halves of a character: no file can hold them


class Read(PipelineStep):
    """The documents of a TextSource; what cannot be read goes into quarantine."""

    type, name = "read", "source"

    def __init__(self, source: Path, quarantine: Path, scrub: Scrub | None):
        super().__init__()
        self.source, self.quarantine, self.scrub = source, quarantine, scrub

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        source = TextSource.load(self.source)  # a file, for it travels to each task
        self.quarantine.mkdir(parents=True, exist_ok=True)
        with (self.quarantine / f"{rank:05d}.jsonl").open("w", encoding="utf-8") as file:

            def bad(record: Bad) -> None:
                self.stat_update("bad")
                row = record._asdict() | {"sample": self.scrub.format(record.sample) if self.scrub else record.sample}
                file.write(json.dumps(redact(row)) + "\n")

            for document in source.documents(rank, world_size, bad):
                self.stat_update("total", "forwarded")
                yield Document(text=_SURROGATES.sub("\ufffd", document.text), id=document.name)


class Texts(NamedTuple):
    """Files of documents by number: those that the tasks of an earlier stage wrote, then those of other corpora."""

    folder: Path
    tasks: int
    others: list[Path]

    def path(self, number: int) -> Path:
        """A file, which is not there where a task kept nothing."""
        return self.folder / f"{number:05d}.jsonl" if number < self.tasks else self.others[number - self.tasks]


class ReadBack(PipelineStep):
    """The documents of the file of a task's number, counted from `first`.

    datatrove's own reader deals out the files there are: where a task kept nothing, all later ones would shift.
    """

    type, name = "read", "earlier stage"

    def __init__(self, texts: Texts, first: int = 0):
        super().__init__()
        self.texts, self.first = texts, first

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for row in rows_of(self.texts.path(self.first + rank)):
            self.stat_update("total", "forwarded")
            yield Document(text=row["text"], id=row["id"])


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl; none where there is no file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:  # ends at \n alone
                yield json.loads(line)


class Normalise(BaseFormatter):
    """One form for what looks the same: Unicode NFC, no control characters, plain spaces, line ends, blank lines."""

    name = "normalise"

    def format(self, text: str) -> str:
        text = _LINE_ENDS.sub("\n", _UNREAD.sub("", unicodedata.normalize("NFC", text)))
        return _BLANK.sub("\n\n", _SPACES.sub(" ", text).replace(" \n", "\n").replace("\n ", "\n")).strip()


class NotEmpty(BaseFilter):
    """Drops documents without a word."""

    name = "empty"

    def filter(self, doc: Document) -> tuple[bool, str]:
        return bool(doc.text.strip()), "empty"


@functools.cache
def _identifier() -> Any:
    """py3langid: langid's classifier (aclanthology.org/P12-3005), its model inside the package."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class Language(BaseFilter):
    """Keeps documents in some languages. datatrove's filter has better models, but downloads them."""

    name = "language"

    def __init__(self, languages: list[str], threshold: float, exclusion_writer: JsonlWriter):
        super().__init__(exclusion_writer)
        self.languages, self.threshold = languages, threshold

    def filter(self, doc: Document) -> tuple[bool, str]:
        language, sure = _identifier().classify(doc.text[:_LANGUAGE_CHARS])
        if language not in self.languages:
            return False, f"language {language}"
        return sure >= self.threshold, f"language unsure ({language})"


class Tally(PipelineStep):
    """Counts documents, bytes and lengths: `length_n` are texts of 2^(n-1) to 2^n - 1 characters."""

    type, name = "count", "tally"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            self.stat_update("documents", f"length_{len(document.text).bit_length()}")
            self.stat_update("bytes", value=len(document.text.encode()))
            yield document


class Keep(JsonlWriter):
    """{"id", "text"} a line, one file a task; not compressed, for gzip writes the time of day into its header."""

    name = "write"

    def __init__(self, folder: Path):
        super().__init__(str(folder), "${rank}.jsonl", compression=None)

    def _default_adapter(self, document: Document) -> dict[str, str]:
        return {"id": document.id, "text": document.text}


class Drop(Keep):
    """What a filter takes out, and why. Nobody's address is kept because the text around it was dropped."""

    name = "dropped"

    def __init__(self, folder: Path, scrub: Scrub | None):
        super().__init__(folder)
        self.scrub = scrub

    def _default_adapter(self, document: Document) -> dict[str, str]:
        text = self.scrub.format(document.text) if self.scrub else document.text
        return {"id": document.id, "text": text, "reason": document.metadata.get("filter_reason", "")}
