"""Builds the stores that text is read from: tokenizer, tokens, splits; cached by what they are made from; atomic."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.config.sections.data import DataConfig, OnCorrupt, Source, SourceConfig
from lmkit.config.sections.prepare import PrepareConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.batches.windows import TextData
from lmkit.data.cache import make_once, open_cache, place_of
from lmkit.data.sources.corpus import clean_sources, cleaned_facts
from lmkit.data.sources.formats import Bad, decoded
from lmkit.data.sources.listing import left_out_notes
from lmkit.data.sources.text import TextSource
from lmkit.data.store.build import Progress, Runner, one_by_one
from lmkit.data.store.frame import META, Frame
from lmkit.data.store.token_parts import build_store, find_cut
from lmkit.data.store.tokens import FORMAT, TRAIN, TokenStore
from lmkit.data.tokens.sample import Part, Sample
from lmkit.data.tokens.tokenizer import ByteTokenizer, FastTokenizer, Tokenizer, load_tokenizer, settings, token_of
from lmkit.data.tokens.vocabulary import train_tokenizer
from lmkit.files import write_json, write_text

TRAINED_ON = "trained_on.json"  # beside a trained tokenizer in the cache
_TOKENIZER_FORMAT = 2  # of how its texts are chosen and cut


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, progress: Progress = lambda *_: None, *,
    how: PrepareConfig | None = None, run: Runner = one_by_one, vocab_size: int = 0,
) -> TextData:  # fmt: skip
    """The text of a configuration, built where it is not in the cache yet; `run` makes the parts of stores.

    `vocab_size` is what the model has, where that does not follow the tokenizer: then a trained one has its full size.
    Raises ConfigError for an empty or unreadable corpus, a bad tokenizer file, a cache that cannot be written, a corpus
    that is to be cleaned first.
    """
    parts, how = data.sources("text"), how or PrepareConfig()
    sources = clean_sources(data, how)
    cache = open_cache(data.cache_dir)
    given = {name: part.paths[0] for name, part in parts.items() if part.source is Source.store}
    if given:
        tokenizer = _tokenizer_of(given, tokenizer, cache)
    texts = hashlib.sha256("".join(source.fingerprint() for source in sources.values()).encode()).hexdigest()
    split = [texts, data.holdout_every] + ([data.fold] if data.fold else [])
    weights = mean_weights(parts)
    codec = build_tokenizer(
        tokenizer, cache, [*split, list(weights.values())],
        lambda limit: _training_texts(sources, weights, limit, progress), vocab_size,
    )  # fmt: skip
    for name, source in sources.items():
        path = place_of(cache, "stores", [FORMAT, source.fingerprint(), codec.sha256(), *split[1:]])
        if not (path / META).is_file():
            build_store(path, source, codec, progress, run)
        given[name] = str(path)
    skip, cache_bytes = data.on_corrupt is OnCorrupt.skip, data.cache_bytes // len(parts)
    stores = {name: TokenStore(given[name], cache_bytes, skip_corrupt=skip) for name in parts}
    notes = left_out_notes({name: source.left_out for name, source in sources.items()})
    cleaned = cleaned_facts(data, how)
    notes += tuple(
        f"data {name!r}: {copies:,} of {facts['source']:,} documents are left out, as earlier parts of the mixture "
        f"have them"
        for name, facts in cleaned.items()
        if (copies := sum(n for key, n in facts.items() if key.startswith("copies_of_")))
    )
    return TextData(codec, stores, {name: part.weight for name, part in parts.items()}, notes, cleaned)


def _tokenizer_of(given: dict[str, str], config: TokenizerConfig, cache: Path) -> TokenizerConfig:
    """The settings that read the tokenizer of finished stores. Raises ConfigError where they were made with several."""
    frames = {name: Frame(place, 0) for name, place in given.items()}
    for one in frames.values():
        one.check_meta({"tokenizer_sha256": str, "end_id": int})
    hashes = {name: frame.meta["tokenizer_sha256"] for name, frame in frames.items()}
    if len(set(hashes.values())) > 1:
        told = ", ".join(f"{name} by {sha[:12]}" for name, sha in hashes.items())
        raise ConfigError(f"data.mixture: these stores have different tokenizers: {told}; prepare them with one")
    frame = next(iter(frames.values()))
    text, place = frame.read_file("tokenizer.json"), frame.place
    if isinstance(decoded(text), Bad):
        raise ConfigError(
            f"{place}/tokenizer.json is damaged: it is not UTF-8; build the store again, or fetch it again"
        )
    file = place_of(cache, "tokenizers", ["store", hashlib.sha256(text).hexdigest()]) / "tokenizer.json"
    if not file.is_file():
        make_once(file.parent, lambda tmp: write_text(tmp / file.name, text.decode()))
    end = token_of(file, frame.meta["end_id"])
    return dataclasses.replace(config, kind=TokenizerKind.file, path=str(file), end_token=end)


def build_tokenizer(
    config: TokenizerConfig, cache: Path, made_from: list, texts: Callable[[int], Sample], vocab_size: int = 0
) -> Tokenizer:
    """The tokenizer of a configuration; a trained one from the cache, or from texts(bytes at most).

    Raises ConfigError where the texts are too few for its size and the model's `vocab_size` does not follow it.
    """
    assert config.kind is not TokenizerKind.init, "the verb finds the file first"
    if config.kind is TokenizerKind.bytes:
        if config.special_tokens:
            raise ConfigError(f"tokenizer.special_tokens={config.special_tokens}: tokenizer=bytes has no room for them")
        return ByteTokenizer(bool(config.mask_token), config.sentinels)
    if config.kind is TokenizerKind.file:
        return load_tokenizer(config.path, config)
    path = place_of(cache, "tokenizers", [_TOKENIZER_FORMAT, settings(config), *made_from])
    if not (path / TRAINED_ON).is_file():
        make_once(path, lambda folder: _train(folder, config, texts(config.train_mb * 1_000_000)))
    codec, about = load_tokenizer(path / "tokenizer.json", config), read_document(path / TRAINED_ON)
    assert isinstance(codec, FastTokenizer)
    codec.trained_on, codec.notes = about["sources"], about["notes"]
    if vocab_size and codec.vocab_size < config.vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size={config.vocab_size}: the training text has pairs for {codec.vocab_size} tokens "
            f"only, and model.vocab_size={vocab_size} does not follow: set tokenizer.vocab_size={codec.vocab_size}, "
            f"model.vocab_size=0 (= the tokenizer's) or tokenizer=bytes"
        )
    return codec


def _train(folder: Path, config: TokenizerConfig, texts: Sample) -> None:
    """A tokenizer, and beside it what it was trained on."""
    codec = train_tokenizer(texts, config)
    codec.save(folder / "tokenizer.json")
    write_json(folder / TRAINED_ON, {"sources": texts.used, "notes": codec.notes})


def mean_weights(parts: dict[str, SourceConfig]) -> dict[str, float]:
    """The share of each part of a mixture, in all 1: the mean of the first and the last, where it moves."""
    ends = [
        {name: part.weight for name, part in parts.items()},
        {name: part.final_weight if part.final_weight >= 0 else part.weight for name, part in parts.items()},
    ]
    totals = [sum(one.values()) or 1.0 for one in ends]
    return {name: sum(one[name] / total for one, total in zip(ends, totals, strict=True)) / 2 for name in parts}


def _training_texts(
    sources: dict[str, TextSource], weights: dict[str, float], limit: int, progress: Progress
) -> Sample:
    """Training documents up to `limit` bytes in all; never a held-out one."""

    def texts(source: TextSource) -> Callable[[], Iterator[tuple[str, str]]]:
        cut = find_cut(source)

        def read() -> Iterator[tuple[str, str]]:
            for document in source.documents(bad=lambda _: None):  # they are counted when the store is made
                for split, text in cut(document, source.held_out(document.name)):
                    if split == TRAIN:
                        yield document.name, text

        return read

    parts = {name: Part(weights[name], texts(source)) for name, source in sources.items()}
    return Sample(parts, limit, counted(progress, sum(source.num_bytes for source in sources.values())))


def counted(progress: Progress, total: int) -> Callable[[int], None]:
    """What adds up the bytes that were read for a tokenizer."""
    done = 0

    def seen(size: int) -> None:
        nonlocal done
        done += size
        progress("training the tokenizer", min(done, total), total)

    return seen
