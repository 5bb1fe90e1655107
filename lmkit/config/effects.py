"""Keys that would change nothing: a key that is set needs what it belongs to.

A key at its default is never refused. What of a configuration has no effect and is said instead (heads of a BERT that
an objective does not train, the size of a vocabulary that is not trained) is not in the table, nor what a section or
`checks.py` refuses anyway.
"""

from enum import Enum
from typing import Any, NamedTuple

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment, to_plain
from lmkit.config.sections.families import ViTConfig
from lmkit.config.sections.objective import ON_TEXT, WITH_CLASSES, ObjectiveKind

SET, UNSET = "set", "unset"  # any value but 0, false, '' and nothing in it; only those


def _all_but(*kinds: ObjectiveKind) -> str:
    return " ".join(one.name for one in ObjectiveKind if one not in kinds)


_RECORDS = _all_but(*ON_TEXT)
_TEXT = " ".join(one.name for one in ON_TEXT)
_CLASSES = " ".join(one.name for one in WITH_CLASSES)
_VOCABULARY = _all_but(*WITH_CLASSES, ObjectiveKind.regress, ObjectiveKind.contrastive)


class Need(NamedTuple):
    """Keys, and the value that another key must have for them to change anything."""

    keys: str  # of one section, divided by spaces
    other: str  # a key; a|b for either. Without a dot: of the same section
    values: str  # names of its values, divided by spaces; or SET, UNSET


_NEEDS = {
    "train": [Need("eval_texts eval_beams", "objective.kind", "seq2seq"),
              Need("eval_tasks", "model", "gpt"), Need("eval_limit", "eval_tasks", SET)],
    "data": [
        Need("paths", "mixture", UNSET),
        Need("paths", "source", "text_files records image_folder idx tree warc hf audio_folder store"),
        Need("split", "source", "hf"),
        Need("heldout_paths", "objective.kind", _RECORDS),
        Need("target_len", "objective.kind", "seq2seq"),
        Need("isolate_documents", "objective.kind", "causal_lm masked_lm"),
        Need("seq_len text_key", "model", "gpt bert encdec clip"),
        Need("text_key", "objective.kind", _all_but(ObjectiveKind.chat)),
        Need("text_key", "model.num_mels", UNSET),
        Need("heldout_paths", "source", "records image_folder idx audio_folder"),
        Need("label_key image_key audio_key", "source", "records"),
        Need("id_key weight_key", "objective.kind", _TEXT),
        Need("pair_key", "objective.kind", "classify regress"),
        Need("pair_key", "model", "bert"),
        Need("target_key", "objective.kind", "seq2seq regress"),
        Need("label_key labels class_weights balance_classes", "objective.kind", _CLASSES),
        Need("image_key image_mean image_std resize", "model", "vit clip"),
        Need("audio_key", "model.num_mels", SET),
        Need("messages_key message_format", "objective.kind", "chat"),
        Need("message_format", "tokenizer.chat_template", UNSET),
    ],
    "data.augment": [Need("flip crop_pixels rotate_degrees scale", "model", "vit clip")],
    "data.clean": [
        Need("normalise languages quality pii decontaminate exact near", "objective.kind", _TEXT),
        Need("language_threshold", "languages", SET),
        Need("words", "quality|near|decontaminate", SET),
        Need("decontaminate_ngram", "decontaminate", SET),
        Need("near_ngram near_buckets near_rows", "near", SET),
    ],
    "tokenizer": [
        Need("path", "kind", "file"),
        Need("mask_token", "objective.kind", "masked_lm"),
        Need(
            "end_token start_token mask_token source_start target_start pair_ends", "kind",
            "bpe file init wordpiece unigram",
        ),
        Need("source_start", "objective.kind", "seq2seq span_corruption contrastive"),
        Need("target_start", "objective.kind", "seq2seq span_corruption"),
        Need("pair_ends", "data.pair_key|objective.next_sentence", SET),
        Need("chat_template", "objective.kind", "chat"),
        Need("sentinels", "objective.kind", "span_corruption"),
    ],
    "objective": [
        Need("z_loss chunk_tokens", "kind", _VOCABULARY),
        Need("label_smoothing", "kind", f"{_VOCABULARY} {_CLASSES}"),
        Need("mask_share", "kind", "masked_lm span_corruption"),
        Need("mask_words next_sentence", "kind", "masked_lm"),
        Need("span_tokens", "kind", "span_corruption"),
    ],
    "optim": [
        Need("adam_learning_rate", "kind", "muon"),
        Need("decay_share", "schedule", "wsd"),
        Need("final_ratio", "schedule", "cosine linear wsd"),
        Need("beta1 beta2", "kind", "adamw lion muon schedule_free_adamw"),
        Need("eps", "kind", "adamw muon schedule_free_adamw"),
        Need("momentum", "kind", "muon sgd"),
        Need("decay", "weight_decay", SET),
    ],
    "lora": [Need("alpha targets train", "rank", SET)],
}  # fmt: skip
# Of each transformer of a model.
_MODEL_NEEDS = [
    Need("rope_theta rope_local_theta rope_scaling", "position", "rope"),
    Need("rope_local_theta global_every", "sliding_window", SET),
    Need("rope_factor", "rope_scaling", "linear llama3"),
    Need("rope_original_len rope_low_freq rope_high_freq", "rope_scaling", "llama3"),
    Need("norm_offset", "norm", "rmsnorm"),
    Need("qkv_bias", "bias", UNSET),
    Need("key_bias", "bias|qkv_bias", SET),
    Need("global_first", "global_every", SET),
    Need("experts_per_token renormalize_experts", "num_experts", SET),
    Need("position_offset", "position", "learned"),
    Need("max_source_len", "num_mels|position", f"{SET} learned"),
    Need("classify_tokens", "objective.kind", "classify_tokens"),
    Need("relative_buckets relative_max_distance", "position", "relative"),
]  # fmt: skip
_NOT_OF_IMAGES = ("vocab_size", "max_seq_len")  # an image has neither


def check_effects(experiment: Experiment) -> None:
    """Raises ConfigError for a key that is set and would change nothing under this configuration."""
    for section, needs in _NEEDS.items():
        here = _value(experiment, section)
        _check(experiment, section, here, type(here)(), needs)
    for prefix, tower in experiment.model.towers().items():
        fresh = _value(type(experiment.model)(), prefix.partition(".")[2])
        _check(experiment, prefix, tower, fresh, _MODEL_NEEDS)
        if isinstance(tower, ViTConfig):
            for name in _NOT_OF_IMAGES:
                if getattr(tower, name) != getattr(fresh, name):
                    raise ConfigError(_message(f"{prefix}.{name}", tower, fresh, "images", "a model of text"))


def _check(experiment: Experiment, section: str, here: Any, fresh: Any, needs: list[Need]) -> None:
    for keys, other, values in needs:
        names = [name if "." in name or name == "model" else f"{section}.{name}" for name in other.split("|")]
        found = [one for name in names for one in _values(experiment, name)]
        if any(_meets(one, values.split()) for one in found):
            continue
        for name in keys.split():
            if getattr(here, name, None) != getattr(fresh, name, None):
                now = " and ".join(f"{n}={_shown(v)}" for n, v in zip(names, found, strict=False) if v is not None)
                now = now or f"a model without {names[0]}"
                raise ConfigError(_message(f"{section}.{name}", here, fresh, now, _way_out(names, values)))


def _message(name: str, here: Any, fresh: Any, now: str, way_out: str) -> str:
    last = name.rpartition(".")[2]
    value, default = getattr(here, last), getattr(fresh, last)
    return (
        f"{name}={_shown(value)} has no effect with {now}: it needs {way_out}; set that, or {name}={_shown(default)} "
        f"(its default)"
    )


def _way_out(names: list[str], values: str) -> str:
    if values == UNSET:
        return f"{names[0]} left out"
    wanted = " or ".join(values.replace(SET, "").split())
    return " or ".join(f"{name}={wanted}" if wanted else name for name in names)


def _meets(value: Any, allowed: list[str]) -> bool:
    named = isinstance(value, Enum)  # of which SET and UNSET say nothing
    return _shown(value) in allowed or (not named and (SET if value else UNSET) in allowed)


def _values(experiment: Experiment, name: str) -> list[Any]:
    """The value of a key; of `model` its family's name, of data.source those of all parts of a mixture."""
    if name == "model":
        return [type(experiment.model).__name__.removesuffix("Config").lower()]
    if name == "data.source":
        return [part.source for part in experiment.data.sources("").values()]
    return [_value(experiment, name)]  # None: a key that this model has not


def _value(root: Any, name: str) -> Any:
    for part in name.split(".") if name else ():
        root = getattr(root, part, None)
    return root


def _shown(value: Any) -> str:
    plain = to_plain(value)
    return str(plain).lower() if isinstance(plain, bool) else str(plain)
