"""Builds the stores that text is read from: tokenizer, tokens, splits; cached by what they are made from; atomic."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.data import DataConfig, TokenizerConfig, TokenizerKind
from lmkit.config.paths import cache_dir
from lmkit.data.sources import TextSource, build_sources
from lmkit.data.store import FORMAT, HELDOUT, TRAIN, ArrayWriter, TokenStore
from lmkit.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, settings, train_bpe

# (what is being done, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]
_PIECE_CHARS, _BATCH_CHARS = 1 << 20, 1 << 22


class TextData(NamedTuple):
    """Everything read by a run on text: the tokenizer, and the stores of the mixture with their weights."""

    tokenizer: Tokenizer
    stores: dict[str, TokenStore]
    weights: dict[str, float]


def prepare(data: DataConfig, tokenizer: TokenizerConfig, progress: Progress = lambda *_: None) -> TextData:
    """The text of a configuration, built where it is not in the cache yet.

    Raises ConfigError for an empty or unreadable corpus, a bad tokenizer file, a cache that cannot be written.
    """
    sources = build_sources(data)
    cache = open_cache(data.cache_dir)
    texts = hashlib.sha256("".join(s.fingerprint() for s, _ in sources.values()).encode()).hexdigest()
    split = [texts, data.holdout_every] + ([data.fold] if data.fold else [])
    codec = build_tokenizer(tokenizer, cache, split, lambda limit: _training_texts(sources, limit, progress))
    stores = {}
    for name, (source, _) in sources.items():
        made_from = [FORMAT, source.fingerprint(), codec.sha256(), *split[1:]]
        path = place_of(cache, "stores", made_from)
        if not (path / "meta.json").is_file():
            make_atomically(path, lambda tmp, source=source: _build(tmp, source, codec, progress))
        stores[name] = TokenStore(path)
    return TextData(codec, stores, {name: weight for name, (_, weight) in sources.items()})


def open_cache(configured: str) -> Path:
    """The cache's folder, made where it is missing. Raises ConfigError where it cannot be written."""
    cache = cache_dir(configured)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write the cache {cache}: {error.strerror}; set data.cache_dir= or $LMKIT_CACHE"
        ) from error
    return cache


def place_of(cache: Path, kind: str, made_from: Any) -> Path:
    """Where in the cache something is that was made from this."""
    return cache / kind / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def build_tokenizer(
    config: TokenizerConfig, cache: Path, made_from: list, texts: Callable[[int], Iterator[str]]
) -> Tokenizer:
    """The tokenizer of a configuration; a trained one from the cache, or from texts(bytes at most)."""
    assert config.kind is not TokenizerKind.init, "the verb finds the file first"
    if config.kind is TokenizerKind.bytes:
        return ByteTokenizer(bool(config.mask_token), config.sentinels)
    if config.kind is TokenizerKind.file:
        return load_tokenizer(Path(config.path).expanduser(), config)
    path = place_of(cache, "tokenizers", [settings(config), *made_from])
    file = path / "tokenizer.json"
    if not file.is_file():
        make_atomically(path, lambda tmp: train_bpe(texts(config.train_mb * 1_000_000), config).save(tmp / file.name))
    return load_tokenizer(file, config)


def _training_texts(sources: dict[str, tuple[TextSource, float]], limit: int, progress: Progress) -> Iterator[str]:
    """Training documents up to `limit` bytes in all; never a held-out one."""
    done, total = 0, min(limit, sum(s.num_bytes for s, _ in sources.values()))
    for source, _ in sources.values():
        for document, held_out in split_documents(source):
            if held_out:
                continue
            if done >= limit:
                return
            done += len(document)
            progress("training the tokenizer", min(done, total), total)
            yield document


def split_documents(source: TextSource) -> Iterator[tuple[str, bool]]:
    """(text, held out?) for each document, by the hash of its name.

    Where that puts every document on one side (a single book), the last 1/holdout_every of each is held out instead.
    """
    sides = {source.held_out(d.name) for d in source.documents() if d.text}
    if not sides:
        raise ConfigError("data: no document holds any text; check data.paths and data.text_key")
    for document in source.documents():
        if len(sides) == 2:
            yield document.text, source.held_out(document.name)
        else:
            size, every = len(document.text), source.holdout_every
            first, last = (size - size // every * n for n in (source.fold + 1, source.fold))  # fold 0 is the end
            yield document.text[:first] + document.text[last:], False
            yield document.text[first:last], True


def make_atomically(path: Path, build: Callable[[Path], None]) -> None:
    """Runs `build` on a temporary folder beside `path`, then moves it into place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        build(tmp)
        try:
            os.replace(tmp, path)
        except OSError:  # another process was faster
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


class _SplitWriter:
    """Tokens, document ends and counts of one split."""

    def __init__(self, path: Path, codec: Tokenizer, hasher):
        self.tokens = ArrayWriter(path / "tokens", "uint16" if codec.vocab_size <= 1 << 16 else "uint32")
        self.ends = ArrayWriter(path / "ends", "int64", shard=1 << 20, chunk=1 << 12)
        self.end = np.array([codec.end_id])
        self.hasher = hasher
        self.bytes = self.documents = 0
        self.position = 1
        self.tokens.append(self.end)

    def piece(self, ids: np.ndarray, text: str) -> None:
        encoded = text.encode()
        self.hasher.update(encoded)
        self.tokens.append(ids)
        self.bytes += len(encoded)
        self.position += len(ids)

    def end_document(self) -> None:
        self.ends.append(np.array([self.position]))
        self.tokens.append(self.end)
        self.hasher.update(b"\0")
        self.position += 1
        self.documents += 1

    def close(self) -> dict[str, int]:
        self.tokens.close()
        self.ends.close()
        return {"tokens": self.tokens.written, "documents": self.documents, "bytes": self.bytes}


def _build(path: Path, source: TextSource, codec: Tokenizer, progress: Progress) -> None:
    """Tokenises a source into a store at `path`."""
    hasher = hashlib.sha256()
    writers = {split: _SplitWriter(path / split, codec, hasher) for split in (TRAIN, HELDOUT)}
    pending: list[tuple[str, str, bool]] = []  # split, piece of text, whether it ends its document
    held = done = 0

    def flush() -> None:
        nonlocal pending, held
        for (split, text, last), ids in zip(pending, codec.encode_batch([text for _, text, _ in pending]), strict=True):
            writers[split].piece(ids, text)
            if last:
                writers[split].end_document()
        pending, held = [], 0

    for text, held_out in split_documents(source):
        pieces = list(_pieces(text))
        for number, piece in enumerate(pieces, 1):
            pending.append((HELDOUT if held_out else TRAIN, piece, number == len(pieces)))
            held += len(piece)
            if held >= _BATCH_CHARS:
                flush()
        done += len(text)
        progress("tokenising", min(done, source.num_bytes), source.num_bytes)
    flush()
    splits = {split: writer.close() for split, writer in writers.items()}
    codec.save(path / "tokenizer.json")
    meta = {
        "format": FORMAT, "vocab_size": codec.vocab_size, "end_id": codec.end_id, "tokenizer_sha256": codec.sha256(),
        "text_sha256": hasher.hexdigest(), "holdout_every": source.holdout_every, "splits": splits,
    }  # fmt: skip
    (path / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces that end at line ends, so that encoding runs in parallel and in bounded memory."""
    start = 0
    while len(text) - start > _PIECE_CHARS:
        cut = text.rfind("\n", start, start + _PIECE_CHARS) + 1
        cut = cut if cut > start else start + _PIECE_CHARS
        yield text[start:cut]
        start = cut
    if text[start:]:
        yield text[start:]
