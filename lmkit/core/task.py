"""What a run learns: its data and the model they fit, whatever the objective."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.config.sections.families import BERTConfig, CLIPConfig, ViTConfig
from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.objective import ON_TEXT, ObjectiveKind
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.console import size
from lmkit.data.batches.fields import Field
from lmkit.data.batches.masking import span_lengths
from lmkit.data.batches.packed import Packed, build_windows
from lmkit.data.batches.records import Records
from lmkit.data.batches.windows import Batches
from lmkit.data.order.mixing import FORMAT, asked_shares, check_lasts
from lmkit.data.prepare import TextData, prepare
from lmkit.data.prepare_records import RecordData, check_records, prepare_records
from lmkit.data.store.build import Progress, Runner, one_by_one, pooled
from lmkit.data.store.part_writer import QUARANTINE
from lmkit.data.store.records import RecordStore
from lmkit.data.store.tokens import HELDOUT, TRAIN
from lmkit.data.tokens.chat import template_source
from lmkit.data.tokens.tokenizer import Tokenizer, has_token

_IDENTITY = ("text_sha256", "sha256", "tokenizer_sha256", "labels")  # of a part of the data
MASKS = ("<|mask|>", "[MASK]", "<mask>")


class Task(NamedTuple):
    """Data ready to be read, and what the rest of a run must know of them."""

    kind: ObjectiveKind
    model: ModelConfig  # fitted to the data
    tokenizer: Tokenizer | None
    batches: Batches
    weights: dict[str, float]  # of the parts of the mixture
    labels: list[str]
    source_len: int
    target_len: int
    predicted: int  # tokens of a row that the vocabulary's head works on; 0 for all
    bytes_per_token: dict[str, float]  # of held-out text; empty where bits per byte mean nothing
    facts: dict[str, Any]  # for the receipt, by part
    notes: list[str]

    @property
    def tokens_per_row(self) -> int:
        return self.source_len + self.target_len


def prepare_task(experiment: Experiment, progress: Progress, run: Runner = one_by_one) -> Task:
    """The data of an experiment, built where they are not in the cache, and the model fitted to them.

    `run` makes the parts of a store.
    """
    if experiment.objective.kind in ON_TEXT:
        tokenizer = _with_special_tokens(experiment)
        data = prepare(
            experiment.data, tokenizer, progress, how=experiment.prepare, run=run,
            vocab_size=getattr(experiment.model, "vocab_size", 0),
        )  # fmt: skip
        return _text_task(experiment, data)
    kind, model = experiment.objective.kind, experiment.model
    if run is one_by_one:  # an encoder of records has one thread
        run = pooled(experiment.prepare.workers)
    data = prepare_records(experiment.data, experiment.tokenizer, kind, model, progress, run=run)
    check_records(data)
    return _record_task(experiment, data)


def _with_special_tokens(experiment: Experiment) -> TokenizerConfig:
    """The tokenizer with the mask or the sentinels that the objective needs, where it does not say which."""
    config, objective = experiment.tokenizer, experiment.objective
    _, spans, _ = span_lengths(experiment.data.seq_len, objective.mask_share, objective.span_tokens)
    if objective.kind is ObjectiveKind.span_corruption and 0 < config.sentinels < spans:
        raise ConfigError(
            f"tokenizer.sentinels={config.sentinels}: a row of data.seq_len={experiment.data.seq_len} has {spans} "
            f"spans; set tokenizer.sentinels={spans} or 0 (= as many as are needed)"
        )
    if objective.kind is ObjectiveKind.span_corruption and not config.sentinels:
        return dataclasses.replace(config, sentinels=spans)
    if objective.kind is not ObjectiveKind.masked_lm or config.mask_token:
        return config
    if config.kind is not TokenizerKind.file:
        return dataclasses.replace(config, mask_token=MASKS[0])
    path = config.path
    found = [mask for mask in MASKS if has_token(path, mask)]
    if not found:
        raise ConfigError(f"objective.kind=masked_lm: {path} has none of {', '.join(MASKS)}; set tokenizer.mask_token")
    return dataclasses.replace(config, mask_token=found[0])


def settled(config: TokenizerConfig, task: Task) -> TokenizerConfig:
    """How a task's tokenizer is used, with all that was found out: special tokens, and a template's text."""
    found = getattr(task.tokenizer, "config", config)
    template = template_source(config) if task.kind is ObjectiveKind.chat else config.chat_template
    return dataclasses.replace(found, chat_template=template)


def _text_task(experiment: Experiment, data: TextData) -> Task:
    objective, length = experiment.objective, experiment.data.seq_len
    for name, store in data.stores.items():
        if store.num_tokens(HELDOUT) < 2:
            raise ConfigError(f"data: {name!r} leaves no held-out text: lower data.holdout_every or add text")
        for split, what in ((TRAIN, "training"), (HELDOUT, "held-out")):
            if store.meta["splits"][split].get("weight") == 0:
                raise ConfigError(
                    f"data.weight_key={experiment.data.weight_key!r}: all {what} text of {name!r} weighs 0, so that "
                    f"nothing can be learned or measured: give some of it a positive weight"
                )
    batch_size = experiment.train.batch_size
    batches = build_windows(data, experiment.data, objective, experiment.run.seed, batch_size)
    check_lasts(batches.order.num_rows, experiment.train.steps, batch_size)
    facts: dict[str, Any] = {
        name: {
            "text_sha256": store.meta["text_sha256"],
            "tokenizer_sha256": store.meta["tokenizer_sha256"],
            "train": store.meta["splits"][TRAIN],
            "heldout": store.meta["splits"][HELDOUT],
        }
        for name, store in data.stores.items()
    }
    for name, cleaned in data.cleaned.items():
        facts[name]["cleaned"] = cleaned
    _add_trained_on(facts, data.tokenizer)
    said = [*data.notes, *data.tokenizer.notes, *unusable_notes(data.stores, facts)]
    for name, layout in (batches.layouts if isinstance(batches, Packed) else {}).items():
        facts[name]["packing"] = {"rows": layout.num_rows, "pieces": layout.num_pieces, "filled": layout.filled}
        said.append(
            f"data {name!r}: {layout.num_pieces:,} pieces of documents packed into {layout.num_rows:,} rows, "
            f"{layout.filled:.2%} of their positions filled"
        )
    _add_shares(facts, batches, experiment)
    even = objective.kind is ObjectiveKind.causal_lm and not any(store.weighed for store in data.stores.values())
    per_token = {name: store.bytes_per_token(HELDOUT) for name, store in data.stores.items()} if even else {}
    target = batches.cutter.target_len if batches.cutter else 0
    predicted = batches.masker.positions(length) if batches.masker else 0
    model, notes = without_idle_heads(fit_model(experiment.model, data.tokenizer, 0), experiment)
    return Task(objective.kind, model, data.tokenizer, batches, data.weights, [], length, target, predicted,
                per_token, facts, [*notes, *said])  # fmt: skip


def _record_task(experiment: Experiment, data: RecordData) -> Task:
    kind, config = experiment.objective.kind, experiment.data
    batch_size = experiment.train.batch_size
    batches = Records(data.stores, data.weights, data.fields, config, experiment.run.seed, batch_size)
    check_lasts(batches.order.num_rows, experiment.train.steps, batch_size)
    facts: dict[str, Any] = {}
    notes = []
    for name, store in data.stores.items():
        facts[name] = {"sha256": store.meta["sha256"], "tokenizer_sha256": store.meta["tokenizer_sha256"]}
        facts[name] |= {"labels": data.labels} if data.labels else {}
        for split in (TRAIN, HELDOUT):
            facts[name][split] = {"records": len(store.rows[split])}
        notes += _cut(name, store, data.fields)
    notes = [*data.notes, *unusable_notes(data.stores, facts), *notes]
    _add_shares(facts, batches, experiment)
    if data.tokenizer is not None:
        _add_trained_on(facts, data.tokenizer)
        notes += data.tokenizer.notes
    classes = 1 if kind is ObjectiveKind.regress else len(data.labels)
    model, idle = without_idle_heads(fit_model(experiment.model, data.tokenizer, classes), experiment)
    notes += idle
    source, target = config.seq_len, config.target_size if kind is ObjectiveKind.seq2seq else 0
    if isinstance(model, ViTConfig):
        source = model.num_patches
    elif isinstance(model, CLIPConfig):
        source += model.vision.num_patches
    return Task(kind, model, data.tokenizer, batches, data.weights, data.labels, source, target, 0, {}, facts, notes)


def changed_data(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, Any, Any]]:
    """What says which data these are and is not as it was: (part, name, then, now). Both are a task's facts."""
    return [
        (part, name, then[name], now.get(part, {}).get(name))
        for part, then in before.items()
        for name in _IDENTITY
        if name in then and then[name] != now.get(part, {}).get(name)
    ]


def _add_shares(facts: dict[str, Any], batches: Batches, experiment: Experiment) -> None:
    """Puts beside each part of a mixture its share of the run's rows: as asked, and as dealt (caps, whole rows)."""
    if len(facts) == 1:
        return
    rows, deal = experiment.train.steps * experiment.train.batch_size, batches.order.deal
    dealt = deal.dealt(rows)
    for part, asked, got in zip(facts.values(), asked_shares(deal.course, rows), dealt, strict=True):
        part["mixture"] = {"format": FORMAT, "asked": float(asked), "dealt": int(got) / rows, "rows": int(got)}


def unusable_notes(stores: Mapping[str, Any], facts: dict[str, Any]) -> list[str]:
    """What the user should know of records that were left out; their number joins the facts."""
    counts = {name: (store.meta.get("unusable", 0), store.place) for name, store in stores.items()}
    for name, (count, _) in counts.items():
        facts[name] |= {"unusable": count} if count else {}
    return [
        f"data {name!r}: {count} records could not be used; see {QUARANTINE} in the parts of {place}"
        for name, (count, place) in counts.items()
        if count
    ]


def _add_trained_on(facts: dict[str, Any], tokenizer: Tokenizer) -> None:
    """To the facts of each part, what of it the tokenizer was trained on, where that was done here."""
    for name, used in tokenizer.trained_on.items():
        facts[name]["tokenizer_text"] = used


def trained_on(facts: dict[str, Any]) -> str:
    """What a tokenizer was trained on, by part, for people to read; "" where it was not trained here."""
    used = {name: part["tokenizer_text"] for name, part in facts.items() if "tokenizer_text" in part}
    return ", ".join(
        f"{name}: {size(one['bytes'])} of {size(one['of_bytes'])} in {one['documents']:,} of {one['of_documents']:,} "
        f"documents"
        for name, one in used.items()
    )


def _sizes(store: RecordStore, column: str) -> np.ndarray:
    """The lengths of a column's rows, or the numbers that it holds."""
    return store.lengths(column, TRAIN) if store.columns[column].shape is None else store.numbers(column, TRAIN)


def _cut(name: str, store: RecordStore, fields: list[Field]) -> list[str]:
    """What the user should know of rows that are longer than the model is given."""
    notes = []
    for columns, most in ((columns, most) for field in fields for columns, most in field.limits.items()):
        lengths = np.sum([_sizes(store, column) for column in columns], axis=0)
        share = float((lengths > most).mean())
        if share > 0.001:
            key = "data.target_len" if columns == ("target",) else "data.seq_len"
            what = " and ".join(columns)
            notes.append(f"data {name!r}: {share:.1%} of the records are cut: their {what} is longer than {key}")
    return notes


def fit_model(model: ModelConfig, tokenizer: Tokenizer | None, classes: int) -> ModelConfig:
    """The model with as many rows and classes as the data have, where it did not say.

    Raises ConfigError where it says something that does not fit.
    """
    if isinstance(model, CLIPConfig):
        return dataclasses.replace(model, text=fit_model(model.text, tokenizer, 0))
    if classes and isinstance(model, BERTConfig | ViTConfig):
        if model.num_classes not in (0, classes):
            raise ConfigError(
                f"model.num_classes={model.num_classes}: the data have {classes}; set model.num_classes={classes} or 0 "
                f"(= the data's)"
            )
        model = dataclasses.replace(model, num_classes=classes)
    if tokenizer is None:
        return model
    size = model.vocab_size  # type: ignore[attr-defined]
    if size and size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size={size} is too small for the tokenizer's {tokenizer.vocab_size} tokens: "
            f"set model.vocab_size={tokenizer.vocab_size} or 0 (= the tokenizer's)"
        )
    return model if size else dataclasses.replace(model, vocab_size=tokenizer.vocab_size)


def without_idle_heads(model: ModelConfig, experiment: Experiment) -> tuple[ModelConfig, list[str]]:
    """A BERT without the heads that this objective does not train, and what to tell of that."""
    if not isinstance(model, BERTConfig):
        return model, []
    masked = experiment.objective.kind is ObjectiveKind.masked_lm
    pairs = masked and experiment.objective.next_sentence
    trained = {
        "lm_head": masked,
        "next_sentence_head": pairs,
        "pooler": pairs or (bool(model.num_classes) and not model.classify_tokens),
        "num_classes": not masked,
    }
    idle = {name: type(getattr(model, name))(0) for name, used in trained.items() if getattr(model, name) and not used}
    notes = [f"left out, as nothing trains it here: {', '.join(f'model.{name}' for name in idle)}"] if idle else []
    return dataclasses.replace(model, **idle), notes


def bits_per_byte(task: Task, part: str, nats: float) -> float:
    """What it costs to code each document and its end, over its UTF-8 bytes; NaN where that means nothing."""
    per_token = task.bytes_per_token.get(part, 0.0)
    return nats / math.log(2) / per_token if per_token else math.nan
