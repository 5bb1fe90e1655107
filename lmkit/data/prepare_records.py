"""Builds the stores that labelled records are read from; cached by what they are made from; atomic."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import TEXTS, DataConfig, OnCorrupt
from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, ViTConfig
from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.objective import ObjectiveKind
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.batches.fields import Field, Images, Labels, Numbers, Texts, Words, label_of, words_of
from lmkit.data.batches.text_fields import Captions, Conversations, Sounds, SourceTexts, Targets
from lmkit.data.cache import open_cache, place_of
from lmkit.data.prepare import build_tokenizer, counted, mean_weights
from lmkit.data.sources.records import RecordSource
from lmkit.data.store.build import Progress, build_frame, one_by_one
from lmkit.data.store.frame import META
from lmkit.data.store.records import RECORD_FORMAT, Column, RecordStore, RecordWriter
from lmkit.data.store.tokens import HELDOUT, TRAIN
from lmkit.data.tokens.chat import ChatTemplate, load_chat_template
from lmkit.data.tokens.sample import Part, Sample
from lmkit.data.tokens.tokenizer import Tokenizer

_TOGETHER = 256  # records encoded at a time
_WITH_CLASSES = (ObjectiveKind.classify, ObjectiveKind.classify_tokens)


class RecordData(NamedTuple):
    """Everything read by a run on records: the tokenizer where there is text, the stores, their weights, the fields."""

    tokenizer: Tokenizer | None
    stores: dict[str, RecordStore]
    weights: dict[str, float]
    fields: list[Field]
    labels: list[str]


def prepare_records(
    data: DataConfig, tokenizer: TokenizerConfig, kind: ObjectiveKind, model: ModelConfig,
    progress: Progress = lambda *_: None,
) -> RecordData:  # fmt: skip
    """The records of a configuration, built where they are not in the cache yet.

    Raises ConfigError, before anything is written, for a missing field, an unknown or an empty class, a file that
    cannot be read, an image of another size.
    """
    sources = _sources(data)
    cache = open_cache(data.cache_dir)
    files = [source.fingerprint() for source, _ in sources.values()]
    labels = _labels(data, kind, [source for source, _ in sources.values()])
    codec, chat = None, load_chat_template(tokenizer) if kind is ObjectiveKind.chat else None
    # formats of columns: conversations and words encoded as whole texts, sounds with the silence that fills a window
    whole = [2] if kind in (ObjectiveKind.chat, ObjectiveKind.classify_tokens) else []
    whole += [2, data.seq_len] if getattr(model, "num_mels", 0) else []
    settings = [_keys(data), *([chat.source, chat.tokens] if chat else []), *whole]
    if needs_text(kind, model):
        blank: Any = None  # fields name their texts before there is a tokenizer
        fields = build_fields(data, kind, model, blank, labels, chat)
        weights = mean_weights(data.sources("records"))
        split = [files, kind.name, *settings, data.holdout_every, data.fold, list(weights.values())]
        codec = build_tokenizer(
            tokenizer, cache, split, lambda limit: _texts(data, sources, weights, fields, limit, progress),
            vocab_size_of(model),
        )  # fmt: skip
    fields = build_fields(data, kind, model, codec, labels, chat)  # type: ignore[arg-type]
    sha = codec.sha256() if codec else ""
    stores = {}
    for name, (source, _) in sources.items():
        columns = {name: list(column) for field in fields for name, column in field.columns.items()}
        made_from = [RECORD_FORMAT, source.fingerprint(), sha, kind.name, columns, labels, *settings]
        path = place_of(cache, "records", made_from)
        if not (path / META).is_file():
            _build(path, source, fields, labels, sha, progress)
        stores[name] = RecordStore(
            path, data.holdout_every, data.fold, data.cache_bytes // len(sources),
            skip_corrupt=data.on_corrupt is OnCorrupt.skip,
        )  # fmt: skip
    for field in fields:
        if isinstance(field, Labels):
            field.class_weights = _class_weights(data, stores, labels)
    return RecordData(codec, stores, {name: weight for name, (_, weight) in sources.items()}, fields, labels)


def _keys(data: DataConfig) -> list[Any]:
    """What of the configuration decides how fields are read."""
    of_text = ("id_key", "weight_key")
    names = [f.name for f in dataclasses.fields(data) if f.name.endswith("_key") and f.name not in of_text]
    return [getattr(data, name) for name in [*names, "message_format", "resize"]]


def vocab_size_of(model: ModelConfig) -> int:
    """Tokens of a model's embedding; 0 where it follows the tokenizer, or has none."""
    return getattr(model.text if isinstance(model, CLIPConfig) else model, "vocab_size", 0)


def needs_text(kind: ObjectiveKind, model: ModelConfig) -> bool:
    """Whether the records of an objective hold text."""
    return kind not in (ObjectiveKind.classify, ObjectiveKind.regress) or isinstance(model, BERTConfig)


def build_fields(
    data: DataConfig, kind: ObjectiveKind, model: ModelConfig, codec: Tokenizer, labels: list[str],
    chat: ChatTemplate | None = None,
) -> list[Field]:  # fmt: skip
    """The fields of an objective's records for a model's family."""
    if kind is ObjectiveKind.seq2seq:
        assert isinstance(model, EncDecConfig)
        return [Sounds(data, model) if model.num_mels else SourceTexts(data, codec), Targets(data, codec)]
    if kind is ObjectiveKind.contrastive:
        assert isinstance(model, CLIPConfig)
        return [Images(data, model.vision), Captions(data, codec)]
    if kind is ObjectiveKind.chat:
        return [Conversations(data, codec, chat)]
    if kind is ObjectiveKind.classify_tokens:
        return [Words(data, codec, labels)]
    what = (
        Images(data, model)
        if isinstance(model, ViTConfig)
        else Texts(data, codec, getattr(model, "type_vocab_size", 2))
    )
    return [what, Numbers(data) if kind is ObjectiveKind.regress else Labels(data, labels)]


def _sources(data: DataConfig) -> dict[str, tuple[RecordSource, float]]:
    sources = {name: (part.source, part.paths, part.weight) for name, part in data.mixture.items()}
    sources = sources or {"records": (data.source, data.paths, 1.0)}
    for kind, _, _ in sources.values():
        if kind in TEXTS:
            raise ConfigError(
                f"data.source={kind.name}: this objective learns from labelled records; set data.source=records, "
                f"image_folder, audio_folder, idx or digits"
            )
    return {
        name: (RecordSource(kind, paths, data.heldout_paths, data), weight)
        for name, (kind, paths, weight) in sources.items()
    }


def _labels(data: DataConfig, kind: ObjectiveKind, sources: list[RecordSource]) -> list[str]:
    """The classes in order: data.labels, else those of the training records, sorted.

    Raises ConfigError for a class of data.labels that no record has.
    """
    if kind not in _WITH_CLASSES:
        return []
    found: Counter[str] = Counter()
    for source in sources:
        for record in source.records():
            if record.heldout:
                continue
            tokens = kind is ObjectiveKind.classify_tokens
            found.update(words_of(record, data)[1] if tokens else [label_of(record, data)])
    if not data.labels:
        return sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    empty = [name for name in data.labels if not found[name]]
    if empty:
        raise ConfigError(
            f"data.labels: no training record has the class {', '.join(map(repr, empty))}; the records have "
            f"{', '.join(sorted(found)[:20])}"
        )
    return list(data.labels)


def _texts(
    data: DataConfig,
    sources: dict[str, tuple[RecordSource, float]],
    weights: dict[str, float],
    fields: list[Field],
    limit: int,
    progress: Progress,
) -> Sample:
    """Texts of training records up to `limit` bytes in all."""

    def read(source: RecordSource) -> Iterator[tuple[str, str]]:
        for record in source.records():
            side = record.heldout
            if side or (side is None and RecordStore.held_out(record.name, data.holdout_every, data.fold)):
                continue
            for field in fields:
                yield from ((record.name, text) for text in field.texts(record))

    parts = {name: Part(weights[name], partial(read, source)) for name, (source, _) in sources.items()}
    return Sample(parts, limit, counted(progress, sum(source.num_bytes for source, _ in sources.values())))


def _build(
    path: Path, source: RecordSource, fields: list[Field], labels: list[str], tokenizer: str, progress: Progress
) -> None:
    columns = {name: column for field in fields for name, column in field.columns.items()}

    def finish(_: Path, facts: list[dict]) -> dict[str, Any]:
        return {
            "format": RECORD_FORMAT, "labels": labels, "tokenizer_sha256": tokenizer, "sha256": facts[0]["sha256"],
            "count": facts[0]["count"], "columns": {name: list(column) for name, column in columns.items()},
        }  # fmt: skip

    build_frame(path, 1, lambda _, tmp: _write(tmp, source, fields, columns, progress), finish, one_by_one)


def _write(
    folder: Path, source: RecordSource, fields: list[Field], columns: dict[str, Column], progress: Progress
) -> None:
    writer = RecordWriter(folder, columns)
    hasher, pending = hashlib.sha256(), []
    count, size = sum(1 for _ in source.records()), max(source.num_bytes, 1)

    def flush() -> None:
        rows = zip(*(field.encode(pending) for field in fields), strict=True)
        for record, pieces in zip(pending, rows, strict=True):
            row = {name: value for piece in pieces for name, value in piece.items()}
            for value in row.values():
                hasher.update(np.ascontiguousarray(value).tobytes())
            writer.append(record.name, record.heldout, row)
        pending.clear()

    for number, record in enumerate(source.records(), 1):
        pending.append(record)
        if len(pending) == _TOGETHER:
            flush()
            progress("reading the records", size * number // count, size)
    flush()
    writer.close({"sha256": hasher.hexdigest()})


def _class_weights(data: DataConfig, stores: dict[str, RecordStore], labels: list[str]) -> np.ndarray | None:
    """float64 [classes]: of data.class_weights, or the inverse of each class's share of the training records."""
    unknown = [name for name in data.class_weights if name not in labels]
    if unknown:
        raise ConfigError(f"data.class_weights: no class {unknown[0]!r}; there are {', '.join(labels)}")
    weights = np.array([data.class_weights.get(name, 1.0) for name in labels])
    counts = np.zeros(len(labels), np.int64)
    for store in stores.values():
        numbers = np.array(store.read("label", TRAIN, np.arange(len(store.rows[TRAIN]))), np.int64)
        counts += np.bincount(numbers, minlength=len(labels))
    if (counts == 0).any():
        name = labels[int(np.argmin(counts))]
        raise ConfigError(
            f"data: no training record has the class {name!r}: all of it is held out; set data.fold, or data.labels"
        )
    if data.balance_classes:
        weights = weights * counts.sum() / (len(labels) * counts)
    return weights if data.balance_classes or data.class_weights else None


def check_records(data: RecordData) -> None:
    """Raises ConfigError where a part of the mixture has nothing to train or to evaluate on."""
    for name, store in data.stores.items():
        for split, what in ((TRAIN, "to train on"), (HELDOUT, "held out")):
            if not len(store.rows[split]):
                raise ConfigError(
                    f"data: {name!r} leaves no record {what} of {store.meta['count']}: change data.holdout_every, "
                    f"data.heldout_paths, or add records"
                )
