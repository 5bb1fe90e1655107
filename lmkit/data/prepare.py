"""Builds the stores that text is read from: tokenizer, tokens, splits; cached by what they are made from; atomic."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import DataConfig, OnCorrupt, Source
from lmkit.config.sections.prepare import PrepareConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.batches.windows import TextData
from lmkit.data.cache import make_once, open_cache, place_of
from lmkit.data.sources.corpus import clean_sources
from lmkit.data.sources.text import TextSource
from lmkit.data.store.build import Progress, Runner, one_by_one
from lmkit.data.store.frame import META, Frame
from lmkit.data.store.token_parts import build_store, find_cut
from lmkit.data.store.tokens import FORMAT, TRAIN, TokenStore
from lmkit.data.tokens.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, settings, token_of
from lmkit.data.tokens.vocabulary import train_tokenizer
from lmkit.files import write_text


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, progress: Progress = lambda *_: None, *,
    how: PrepareConfig | None = None, run: Runner = one_by_one,
) -> TextData:  # fmt: skip
    """The text of a configuration, built where it is not in the cache yet; `run` makes the parts of stores.

    Raises ConfigError for an empty or unreadable corpus, a bad tokenizer file, a cache that cannot be written, a corpus
    that is to be cleaned first.
    """
    parts = data.sources("text")
    sources = clean_sources(data, how or PrepareConfig())
    cache = open_cache(data.cache_dir)
    given = {name: part.paths[0] for name, part in parts.items() if part.source is Source.store}
    if given:
        tokenizer = _tokenizer_of(given, tokenizer, cache)
    texts = hashlib.sha256("".join(source.fingerprint() for source in sources.values()).encode()).hexdigest()
    split = [texts, data.holdout_every] + ([data.fold] if data.fold else [])
    codec = build_tokenizer(tokenizer, cache, split, lambda limit: _training_texts(sources, limit, progress))
    for name, source in sources.items():
        path = place_of(cache, "stores", [FORMAT, source.fingerprint(), codec.sha256(), *split[1:]])
        if not (path / META).is_file():
            build_store(path, source, codec, progress, run)
        given[name] = str(path)
    skip, cache_bytes = data.on_corrupt is OnCorrupt.skip, data.cache_bytes // len(parts)
    stores = {name: TokenStore(given[name], cache_bytes, skip_corrupt=skip) for name in parts}
    return TextData(codec, stores, {name: part.weight for name, part in parts.items()})


def _tokenizer_of(given: dict[str, str], config: TokenizerConfig, cache: Path) -> TokenizerConfig:
    """The settings that read the tokenizer of finished stores. Raises ConfigError where they were made with several."""
    frames = {name: Frame(place, 0) for name, place in given.items()}
    hashes = {name: frame.meta["tokenizer_sha256"] for name, frame in frames.items()}
    if len(set(hashes.values())) > 1:
        told = ", ".join(f"{name} by {sha[:12]}" for name, sha in hashes.items())
        raise ConfigError(f"data.mixture: these stores have different tokenizers: {told}; prepare them with one")
    frame = next(iter(frames.values()))
    text = frame.read_file("tokenizer.json")
    file = place_of(cache, "tokenizers", ["store", hashlib.sha256(text).hexdigest()]) / "tokenizer.json"
    if not file.is_file():
        make_once(file.parent, lambda tmp: write_text(tmp / file.name, text.decode()))
    end = token_of(file, frame.meta["end_id"])
    return dataclasses.replace(config, kind=TokenizerKind.file, path=str(file), end_token=end)


def build_tokenizer(
    config: TokenizerConfig, cache: Path, made_from: list, texts: Callable[[int], Iterator[str]]
) -> Tokenizer:
    """The tokenizer of a configuration; a trained one from the cache, or from texts(bytes at most)."""
    assert config.kind is not TokenizerKind.init, "the verb finds the file first"
    if config.kind is TokenizerKind.bytes:
        if config.special_tokens:
            raise ConfigError(f"tokenizer.special_tokens={config.special_tokens}: tokenizer=bytes has no room for them")
        return ByteTokenizer(bool(config.mask_token), config.sentinels)
    if config.kind is TokenizerKind.file:
        return load_tokenizer(config.path, config)
    path = place_of(cache, "tokenizers", [settings(config), *made_from])
    file = path / "tokenizer.json"
    if not file.is_file():
        make_once(path, lambda tmp: train_tokenizer(texts(config.train_mb * 1_000_000), config).save(tmp / file.name))
    return load_tokenizer(file, config)


def _training_texts(sources: dict[str, TextSource], limit: int, progress: Progress) -> Iterator[str]:
    """Training documents up to `limit` bytes in all; never a held-out one."""
    done, total = 0, min(limit, sum(source.num_bytes for source in sources.values()))
    for source in sources.values():
        cut = find_cut(source)
        for document in source.documents(bad=lambda _: None):  # they are counted when the store is made
            for split, text in cut(document, source.held_out(document.name)):
                if split != TRAIN:
                    continue
                if done >= limit:
                    return
                done += len(text)
                progress("training the tokenizer", min(done, total), total)
                yield text
