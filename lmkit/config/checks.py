"""What can be trained: the one check of a whole experiment that all verbs share."""

from lmkit.config.base import ConfigError
from lmkit.config.effects import check_effects
from lmkit.config.experiment import Experiment
from lmkit.config.saved import FAMILY_SCHEMAS
from lmkit.config.sections.data import Curriculum, DataConfig, Packing
from lmkit.config.sections.families import MODELS_FOR, BERTConfig, ViTConfig
from lmkit.config.sections.objective import ON_TEXT, ObjectiveKind


def check_experiment(experiment: Experiment) -> None:
    """Raises ConfigError where objective, model, data and tokenizer do not go together, or a key changes nothing.

    Every verb that trains, plans or prepares an experiment begins with it, so they agree on what can run.
    """
    kind, model, objective = experiment.objective.kind, experiment.model, experiment.objective
    families = MODELS_FOR[kind]
    if not isinstance(model, families):
        fitting = " or ".join(family.__name__ for family in families)
        names = " or ".join(f"model={name}" for name, schema in FAMILY_SCHEMAS.items() if schema in families)
        own = " or ".join(f"objective={one.name}" for one, schemas in MODELS_FOR.items() if isinstance(model, schemas))
        raise ConfigError(
            f"objective.kind={kind.name} learns with {fitting}; this is {type(model).__name__}: set {names} (or one of "
            f"its presets), or {own}"
        )
    if kind is ObjectiveKind.masked_lm:
        assert isinstance(model, BERTConfig)
        if not model.lm_head:
            raise ConfigError("objective.kind=masked_lm with model.lm_head=false: set model.lm_head=true")
        if objective.next_sentence and not (model.next_sentence_head and model.type_vocab_size >= 2):
            raise ConfigError(
                "objective.next_sentence=true needs model.next_sentence_head=true and model.type_vocab_size=2"
            )
    if experiment.data.augment.mixup and (kind is not ObjectiveKind.classify or not isinstance(model, ViTConfig)):
        raise ConfigError(f"data.augment.mixup={experiment.data.augment.mixup}: only images with classes are blended")
    _check_rows(experiment.data, kind)
    if kind is ObjectiveKind.classify_tokens and not getattr(model, "classify_tokens", False):
        raise ConfigError("objective.kind=classify_tokens needs model.classify_tokens=true")
    check_effects(experiment)


def _check_rows(data: DataConfig, kind: ObjectiveKind) -> None:
    """Raises ConfigError where rows cannot be made, or ordered, as the configuration says."""
    if data.packing is Packing.best_fit and kind is not ObjectiveKind.causal_lm:
        raise ConfigError(
            f"data.packing=best_fit with objective.kind={kind.name}: only causal_lm learns from packed documents; set "
            f"data.packing=windows"
        )
    if data.curriculum is not Curriculum.none and kind in ON_TEXT and data.packing is Packing.windows:
        raise ConfigError(
            f"data.curriculum={data.curriculum.name} with data.packing=windows: windows are all of one length; set "
            f"data.packing=best_fit (with objective.kind=causal_lm), or data.curriculum=none"
        )
