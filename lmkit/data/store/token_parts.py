"""Text into parts of a token store."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.data.sources.documents import Document
from lmkit.data.sources.formats import Bad, check_share
from lmkit.data.sources.text import TextSource
from lmkit.data.store.build import MOST_PARTS, PART_BYTES, Progress, Runner, build_frame, one_by_one
from lmkit.data.store.part_writer import PartWriter
from lmkit.data.store.tokens import FORMAT, HELDOUT, SPLITS, TRAIN, arrays_of
from lmkit.data.tokens.bulk import Bulk
from lmkit.data.tokens.tokenizer import Tokenizer

_LARGER_SHARDS = 4  # times those of other parts, at most: a writer holds one
_PIECE_CHARS, _BATCH_CHARS = 1 << 20, 1 << 23
_LINE_END = re.compile(r"\S\n(?=\S)")


class Cut(NamedTuple):
    """How documents are divided: by the hash of their names, or (where that leaves one side empty) each at its end."""

    every: int
    fold: int
    by_name: bool

    def __call__(self, document: Document, held_out: bool) -> Iterator[tuple[str, str]]:
        """(split, text) of a document."""
        if self.by_name:
            yield HELDOUT if held_out else TRAIN, document.text
            return
        if isinstance(document.weights, list):
            raise ConfigError(
                f"data.weight_key: {document.name} is cut at its end to hold that out, which its spans do not survive; "
                f"give more documents, or one number a document"
            )
        size = len(document.text)
        first, last = (size - size // self.every * n for n in (self.fold + 1, self.fold))  # fold 0 is the end
        yield TRAIN, document.text[:first] + document.text[last:]
        yield HELDOUT, document.text[first:last]


def find_cut(source: TextSource) -> Cut:
    """How the documents of a source are divided. Raises ConfigError where none holds any text."""
    sides, bad = set(), []
    for document in source.documents(bad=bad.append):
        if document.text:
            sides.add(source.held_out(document.name))
        if len(sides) == 2:
            break
    if not sides and bad:
        raise ConfigError(f"data: {bad[0].place} {bad[0].reason}; so it is with all of the {len(bad)} records")
    if not sides:
        raise ConfigError("data: no document holds any text; check data.paths and data.text_key")
    return Cut(source.holdout_every, source.fold, len(sides) == 2)


def num_parts(source: TextSource) -> int:
    """How many writers a source can have: the same wherever it is built."""
    return max(min(len(source.files), source.num_bytes // PART_BYTES, MOST_PARTS), 1)


class _Text(NamedTuple):
    """A document, or the share of it that goes into one split, in pieces that are encoded by themselves."""

    name: str
    pieces: list[str]
    weights: Any


class _Split:
    """What is written of one split of a part."""

    def __init__(self, writer: PartWriter, split: str, tokenizer: Tokenizer, weighed: bool):
        self.writer, self.split, self.tokenizer, self.weighed = writer, split, tokenizer, weighed
        self.position = self.bytes = self.documents = self.name_end = 0
        self.weight = 0.0  # of all tokens that are predicted
        self.hasher = hashlib.sha256()

    def _write(self, name: str, values: np.ndarray) -> None:
        self.writer.append(f"{self.split}/{name}", values)

    def extend(self, texts: list[_Text], ids: list[np.ndarray]) -> None:
        """Documents and their ids, in order."""
        end, lead = np.array([self.tokenizer.end_id]), self.position == 0
        ends = self.position + lead + np.cumsum([len(one) + 1 for one in ids]) - 1
        self._write("tokens", np.concatenate([end] * lead + [part for one in ids for part in (one, end)]))
        self._write("ends", ends)
        if self.weighed:
            weights = [token_weights(self.tokenizer, text, len(one)) for text, one in zip(texts, ids, strict=True)]
            self._write("weights", np.concatenate([np.ones(int(lead)), *weights]))
            self.weight += sum(float(one.sum()) for one in weights)
        names = [text.name.encode() for text in texts]
        self._write("names", np.frombuffer(b"".join(names), np.uint8))
        self._write("name_ends", self.name_end + np.cumsum([len(name) for name in names]))
        for text in texts:
            for piece in text.pieces:
                self.hasher.update(encoded := piece.encode())
                self.bytes += len(encoded)
            self.hasher.update(b"\0")
        self.position, self.name_end = int(ends[-1]) + 1, self.name_end + sum(map(len, names))
        self.documents += len(texts)

    def facts(self) -> dict[str, Any]:
        return {
            "tokens": self.position, "documents": self.documents, "bytes": self.bytes,
            "text_sha256": self.hasher.hexdigest(), **({"weight": self.weight} if self.weighed else {}),
        }  # fmt: skip


def token_weights(tokenizer: Tokenizer, text: _Text, count: int) -> np.ndarray:
    """float32 [count + 1]: what the loss of each token weighs, and of the end token, which weighs as the last one.

    A token weighs what its last character does (its first one may be a space); what no span covers weighs 1.
    """
    given = text.weights
    if not isinstance(given, list):
        return np.full(count + 1, 1.0 if given is None else given, np.float32)
    chars = np.ones(sum(map(len, text.pieces)), np.float32)
    for first, last, weight in given:
        chars[int(first) : int(last)] = weight
    lasts, before = [], 0
    for piece in text.pieces:
        lasts.append(tokenizer.encode_chars([piece])[0][1] + before)
        before += len(piece)
    weights = chars[np.concatenate(lasts)]
    assert len(weights) == count, (text.name, len(weights), count)
    return np.append(weights, weights[-1:])


class WritePart:
    """Writes parts of a token store. It can be sent to another process, where it tells of no progress."""

    def __init__(self, source: TextSource, tokenizer: Tokenizer, progress: Progress):
        self.source, self.tokenizer, self.cut, self.parts = source, tokenizer, find_cut(source), num_parts(source)
        self.weighed, self.progress, self.done = bool(source.keys.weight), progress, 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"progress": None}

    def _documents(self, number: int, bad: list[Bad]) -> Iterator[Document]:
        for document in self.source.documents(number, self.parts, bad.append):
            yield document
            self.done += len(document.text)
            if self.progress:
                self.progress("tokenising", min(self.done, self.source.num_bytes), self.source.num_bytes)

    def __call__(self, number: int, folder: Path) -> None:
        """The part of this number. Records that cannot be used are listed beside it."""
        larger = min(max(self.source.num_bytes // self.parts // PART_BYTES, 1), _LARGER_SHARDS)
        writer = PartWriter(folder, arrays_of(self.tokenizer.vocab_size, self.weighed, larger))
        splits = {split: _Split(writer, split, self.tokenizer, self.weighed) for split in SPLITS}
        encode = Bulk(self.tokenizer)
        pending: dict[str, list[_Text]] = {split: [] for split in SPLITS}
        bad: list[Bad] = []
        held = 0

        def flush() -> None:
            texts = [text for split in SPLITS for text in pending[split]]
            found = iter(encode([piece for text in texts for piece in text.pieces]))
            ids = iter([_joined([next(found) for _ in text.pieces]) for text in texts])
            for split, into in splits.items():
                if pending[split]:
                    into.extend(pending[split], [next(ids) for _ in pending[split]])
                    pending[split] = []

        for document in self._documents(number, bad):
            for split, text in self.cut(document, self.source.held_out(document.name)):
                if text:
                    pending[split].append(_Text(document.name, list(_pieces(text, encode.additive)), document.weights))
                    held += len(text)
            if held >= _BATCH_CHARS:
                flush()
                held = 0
        flush()
        writer.close({split: into.facts() for split, into in splits.items()}, bad)


def _joined(ids: list[np.ndarray]) -> np.ndarray:
    return ids[0] if len(ids) == 1 else np.concatenate(ids)


def _pieces(text: str, additive: bool) -> Iterator[str]:
    """A long text in pieces, so that encoding runs in parallel and in bounded memory; whole where ids do not add up.

    A piece ends at a line end between two characters that are no white space: there no token reaches across.
    """
    start = 0
    while additive and len(text) - start > _PIECE_CHARS:
        stop = start + _PIECE_CHARS
        cut = text.rfind("\n", start + 1, stop) + 1
        while cut and (text[cut - 2].isspace() or text[cut].isspace()):
            cut = text.rfind("\n", start + 1, cut - 1) + 1
        if not cut:
            later = _LINE_END.search(text, stop - 1)
            cut = later.end() if later else len(text)
        yield text[start:cut]
        start = cut
    if text[start:]:
        yield text[start:]


def build_store(path: Path, source: TextSource, codec: Tokenizer, progress: Progress, run: Runner = one_by_one) -> None:
    """Tokenises a source into a store at `path`."""
    write = WritePart(source, codec, progress)

    def finish(folder: Path, facts: list[dict]) -> dict[str, Any]:
        codec.save(folder / "tokenizer.json")
        summed = ("tokens", "documents", "bytes", *(["weight"] if write.weighed else []))
        totals = {s: {k: sum(one[s][k] for one in facts) for k in summed} for s in SPLITS}
        bad, first = sum(one["bad"] for one in facts), next((one["first_bad"] for one in facts if one["bad"]), "")
        check_share(
            bad, bad + sum(totals[split]["documents"] for split in SPLITS), source.max_bad_share, f"the first: {first}"
        )
        for split in SPLITS:  # the end token before a part counts in the first one alone
            totals[split]["tokens"] -= max(sum(one[split]["tokens"] > 0 for one in facts) - 1, 0)
        texts = "".join(one[split]["text_sha256"] for one in facts for split in SPLITS)
        return {
            "format": FORMAT, "vocab_size": codec.vocab_size, "end_id": codec.end_id, "holdout_every": write.cut.every,
            "tokenizer_sha256": codec.sha256(), "text_sha256": hashlib.sha256(texts.encode()).hexdigest(),
            "splits": totals, "unusable": bad,
        }  # fmt: skip

    build_frame(path, write.parts, write, finish, run)
