"""Hydra composes, and the tree becomes one typed `Experiment`."""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lmkit.config.base import ConfigError
from lmkit.config.entry.errors import explain, unknown_key
from lmkit.config.entry.words import quoted_words
from lmkit.config.experiment import Experiment
from lmkit.config.paths import conf_dir
from lmkit.config.saved import trust_blocks
from lmkit.config.sections.families import MODEL_SCHEMAS
from lmkit.config.sections.hardware import sized

if TYPE_CHECKING:
    from omegaconf import DictConfig


def register(words: Iterable[str] = ()) -> None:
    """Puts the schemas into Hydra's store, and the hardware that `words` name by its number, such as h100_64.

    Called by the entries; importing has no effects.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    if "experiment_schema.yaml" not in store.repo:  # a third of the time that composing takes
        store.store(name="experiment_schema", node=Experiment)
        for name, schema in MODEL_SCHEMAS.items():
            store.store(group="model", name=name, node=schema)
    for word in words:
        group, _, options = word.partition("=")
        for option in options.split(",") if group == "hardware" else ():
            if entry := sized(option):
                store.store(group="hardware", name=option, node=entry)


def compose(overrides: list[str]) -> Experiment:
    """The typed experiment for command-line overrides: what notebooks, tools and tests call.

    Raises ConfigError with the message the command line would print.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register(overrides)
    hydra = GlobalHydra.instance()
    callers, hydra.hydra = hydra.hydra, None  # a Hydra of the caller's own steps aside
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return to_experiment(hydra_compose("config", quoted_words(overrides)))
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise ConfigError(message) from error
    finally:
        GlobalHydra.instance().hydra = callers


def to_experiment(composed: "DictConfig") -> Experiment:
    """The typed tree of a composed one. Raises ConfigError for keys that no schema has (`+typo=1` adds them)."""
    from omegaconf import DictConfig, OmegaConf

    def reject_unknown(node: DictConfig, prefix: str) -> None:
        schema = OmegaConf.get_type(node)
        known = {f.name for f in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else set(node)
        for name in node:
            if name not in known:
                raise ConfigError(unknown_key(f"{prefix}{name}"))
            if isinstance(child := node._get_node(name), DictConfig):
                reject_unknown(child, f"{prefix}{name}.")

    reject_unknown(composed, "")
    experiment = OmegaConf.to_object(composed)
    assert isinstance(experiment, Experiment)
    trust_blocks(experiment.model)
    return experiment
