"""Which model learns which objective, and from what a batch must hold."""

from typing import Any

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import MODELS_FOR, BERTConfig, CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.objective import ObjectiveKind

_TOKENS, _LABELS = ("targets", "weights"), ("labels",)
_ANSWERS: dict[ObjectiveKind, tuple[str, ...]] = {
    ObjectiveKind.causal_lm: _TOKENS, ObjectiveKind.chat: _TOKENS, ObjectiveKind.masked_lm: _TOKENS,
    ObjectiveKind.span_corruption: _TOKENS, ObjectiveKind.seq2seq: _TOKENS, ObjectiveKind.classify: _LABELS,
    ObjectiveKind.classify_tokens: _LABELS, ObjectiveKind.regress: ("targets",), ObjectiveKind.contrastive: (),
}  # fmt: skip
_INPUTS: dict[type[ModelConfig], tuple[str, ...]] = {
    GPTConfig: ("inputs",), BERTConfig: ("inputs",), EncDecConfig: ("source", "inputs"), ViTConfig: ("images",),
    CLIPConfig: ("inputs", "last", "images"),
}  # fmt: skip


def check_fit(kind: ObjectiveKind, model: Any, batch: Any) -> None:
    """Raises ConfigError where an objective, a model and a batch do not go together, naming what would."""
    config = getattr(model, "config", None)
    if not isinstance(config, MODELS_FOR[kind]):
        fitting = " or ".join(family.__name__.removesuffix("Config") for family in MODELS_FOR[kind])
        own = ", ".join(one.name for one, families in MODELS_FOR.items() if isinstance(config, families))
        raise ConfigError(
            f"objective.kind={kind.name} learns with {fitting}; this is {type(model).__name__}: give another model"
            + (f", or set objective.kind to one of {own}" if own else "")
        )
    _check_heads(kind, config, batch)
    family = next(family for family in _INPUTS if isinstance(config, family))
    needed = (*_INPUTS[family], *_ANSWERS[kind], *(("other_labels",) if "share" in batch else ()))
    if missing := [name for name in needed if name not in batch]:
        raise ConfigError(
            f"objective.kind={kind.name} with {type(model).__name__} reads {', '.join(needed)} of a batch; this one "
            f"has {', '.join(batch) or 'nothing'}: add {', '.join(missing)}"
        )


def _check_heads(kind: ObjectiveKind, config: Any, batch: Any) -> None:
    lacking = []
    if kind is ObjectiveKind.masked_lm:
        lacking += [] if config.lm_head else ["model.lm_head=true"]
        lacking += (
            ["model.next_sentence_head=true"] if "next_sentence" in batch and not config.next_sentence_head else []
        )
    if kind in (ObjectiveKind.classify, ObjectiveKind.classify_tokens, ObjectiveKind.regress):
        lacking += [] if config.num_classes else [f"model.num_classes={1 if kind is ObjectiveKind.regress else 'N'}"]
    if kind is ObjectiveKind.classify_tokens and not config.classify_tokens:
        lacking.append("model.classify_tokens=true")
    if kind is ObjectiveKind.regress and getattr(config, "classify_tokens", False):
        lacking.append("model.classify_tokens=false")
    if lacking:
        raise ConfigError(f"objective.kind={kind.name} needs {' and '.join(lacking)}: make the model with that")
