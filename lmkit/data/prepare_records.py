"""Builds the stores that labelled records are read from; cached by what they are made from; atomic."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.config.sections.data import TEXTS, DataConfig, OnCorrupt
from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, ViTConfig
from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.objective import WITH_CLASSES, ObjectiveKind
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.batches.fields import Field, Images, Labels, Numbers, Texts, label_of
from lmkit.data.batches.text_fields import Captions, Conversations, Sounds, SourceTexts, Targets, Words, words_of
from lmkit.data.build_records import build_record_store
from lmkit.data.cache import make_once, open_cache, place_of
from lmkit.data.prepare import build_tokenizer, counted, mean_weights
from lmkit.data.sources.formats import Bad
from lmkit.data.sources.listing import left_out_notes
from lmkit.data.sources.records import RecordSource
from lmkit.data.store.build import Progress, Runner, one_by_one
from lmkit.data.store.frame import META
from lmkit.data.store.records import RECORD_FORMAT, RecordStore
from lmkit.data.store.tokens import HELDOUT, TRAIN
from lmkit.data.tokens.chat import ChatTemplate, load_chat_template
from lmkit.data.tokens.sample import Part, Sample
from lmkit.data.tokens.tokenizer import Tokenizer
from lmkit.files import write_json

_SCAN_FORMAT = 1


class RecordData(NamedTuple):
    """Everything read by a run on records: tokenizer (where there is text), stores, weights, fields, what to tell."""

    tokenizer: Tokenizer | None
    stores: dict[str, RecordStore]
    weights: dict[str, float]
    fields: list[Field]
    labels: list[str]
    notes: tuple[str, ...] = ()


def prepare_records(
    data: DataConfig, tokenizer: TokenizerConfig, kind: ObjectiveKind, model: ModelConfig,
    progress: Progress = lambda *_: None, *, run: Runner = one_by_one,
) -> RecordData:  # fmt: skip
    """The records of a configuration, built where they are not in the cache yet; `run` makes the parts of stores.

    Records that cannot be used (a missing field, an unknown class, an image that cannot be read) are left out and
    listed. Raises ConfigError where they are more than data.max_bad_share, and for a class without records.
    """
    sources = _sources(data)
    cache = open_cache(data.cache_dir)
    files = [source.fingerprint() for source, _ in sources.values()]
    scans = {name: partial(_scan, data, kind, source, cache) for name, (source, _) in sources.items()}
    labels = _labels(data, [scan() for scan in scans.values()]) if kind in WITH_CLASSES else []
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
            getattr(model, "vocab_size", 0),
        )  # fmt: skip
    fields = build_fields(data, kind, model, codec, labels, chat)  # type: ignore[arg-type]
    sha = codec.sha256() if codec else ""
    stores = {}
    for name, (source, _) in sources.items():
        columns = {name: list(column) for field in fields for name, column in field.columns.items()}
        made_from = [RECORD_FORMAT, source.fingerprint(), sha, kind.name, columns, labels, *settings]
        path = place_of(cache, "records", made_from)
        if not (path / META).is_file():
            build_record_store(path, source, fields, labels, sha, scans[name]().count, progress, run)
        stores[name] = RecordStore(
            path, data.holdout_every, data.fold, data.cache_bytes // len(sources),
            skip_corrupt=data.on_corrupt is OnCorrupt.skip,
        )  # fmt: skip
    for field in fields:
        if isinstance(field, Labels):
            field.class_weights = _class_weights(data, stores, labels)
    notes = left_out_notes({name: source.left_out for name, (source, _) in sources.items()})
    if kind is ObjectiveKind.chat:
        notes += tuple(note for name, store in stores.items() for note in _without_answer(name, store, data.seq_len))
    return RecordData(codec, stores, {name: weight for name, (_, weight) in sources.items()}, fields, labels, notes)


def _keys(data: DataConfig) -> list[Any]:
    """What of the configuration decides how fields are read."""
    of_text = ("id_key", "weight_key")
    names = [f.name for f in dataclasses.fields(data) if f.name.endswith("_key") and f.name not in of_text]
    return [getattr(data, name) for name in [*names, "message_format", "resize", "allow_roots"]]


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


class _Scan(NamedTuple):
    """What one reading of a source counts: its records, and those that train of each class."""

    count: int
    labels: dict[str, int]


def _scan(data: DataConfig, kind: ObjectiveKind, source: RecordSource, cache: Path) -> _Scan:
    """From the cache, or made: no start after the first reads the records for it."""
    path = place_of(cache, "scans", [_SCAN_FORMAT, source.fingerprint(), kind.name, _keys(data)])

    def make(folder: Path) -> None:
        found: Counter[str] = Counter()
        bad: list[None] = []
        count, tokens = 0, kind is ObjectiveKind.classify_tokens
        for record in source.records(bad=lambda _: bad.append(None)):
            count += 1
            if kind in WITH_CLASSES and not record.heldout:
                with suppress(ConfigError):
                    found.update(words_of(record, data)[1] if tokens else [label_of(record, data)])
        write_json(folder / "scan.json", _Scan(count + len(bad), dict(found))._asdict(), indent=None)

    if not (path / "scan.json").is_file():
        make_once(path, make)
    found = read_document(path / "scan.json", way_out="remove it, and it is made again")
    return _Scan(int(found["count"]), found["labels"])


def _labels(data: DataConfig, scans: list[_Scan]) -> list[str]:
    """The classes in order: data.labels, else those of the training records, sorted.

    Raises ConfigError for a class of data.labels that no record has.
    """
    found = sum((Counter(scan.labels) for scan in scans), Counter())
    if not data.labels:
        return sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    empty = [name for name in data.labels if not found[name]]
    if empty:
        raise ConfigError(
            f"data.labels: no training record has the class {', '.join(map(repr, empty))}; the records have "
            f"{', '.join(sorted(found)[:20])}{_unquoted(empty)}"
        )
    return list(data.labels)


def _count_later(_: Bad) -> None:
    """Records that cannot be used are counted when the store is made."""


def _unquoted(names: list[str]) -> str:
    """What YAML may have made of a class that was written without quotes."""
    booleans = not {"True", "False"}.isdisjoint(names)
    return "; YAML reads yes, no, on and off as true and false: put them in quotes" if booleans else ""


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
        for record in source.records(bad=_count_later):
            side, texts = record.heldout, []
            if side or (side is None and RecordStore.held_out(record.name, data.holdout_every, data.fold)):
                continue
            with suppress(ConfigError):
                texts = [text for field in fields for text in field.texts(record)]
            yield from ((record.name, text) for text in texts)

    parts = {name: Part(weights[name], partial(read, source)) for name, (source, _) in sources.items()}
    return Sample(parts, limit, counted(progress, sum(source.num_bytes for source, _ in sources.values())))


def _without_answer(name: str, store: RecordStore, length: int) -> list[str]:
    """What to tell of conversations none of whose answers is in their row. Raises ConfigError where that is all."""
    notes = []
    for split, what in ((TRAIN, "of the training"), (HELDOUT, "of the held-out")):
        first = store.numbers("first_answer", split)
        cut = first > length
        if len(cut) and cut.all():
            raise ConfigError(
                f"data.seq_len={length}: no answer {what} conversations of {name!r} lies in a row; the first ones "
                f"begin after {first.min()} to {first.max()} tokens: set data.seq_len={first.max()} or more"
            )
        if cut.any():
            notes.append(
                f"data {name!r}: {cut.mean():.1%} {what} conversations have no answer in data.seq_len={length} tokens, "
                f"and teach nothing"
            )
    return notes


def _class_weights(data: DataConfig, stores: dict[str, RecordStore], labels: list[str]) -> np.ndarray | None:
    """float64 [classes]: of data.class_weights, or the inverse of each class's share of the training records."""
    unknown = [name for name in data.class_weights if name not in labels]
    if unknown:
        raise ConfigError(f"data.class_weights: no class {unknown[0]!r}; there are {', '.join(labels)}")
    weights = np.array([data.class_weights.get(name, 1.0) for name in labels])
    if (weights < 0).any() or not weights.any():
        raise ConfigError(f"data.class_weights={data.class_weights}: none may be negative, and one must be above 0")
    counts = np.zeros(len(labels), np.int64)
    for store in stores.values():
        counts += np.bincount(store.numbers("label", TRAIN), minlength=len(labels))
    if (counts == 0).any():
        name = labels[int(np.argmin(counts))]
        raise ConfigError(
            f"data: no training record has the class {name!r}: all of it is held out, or cannot be used; set "
            f"data.fold, or data.labels"
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
