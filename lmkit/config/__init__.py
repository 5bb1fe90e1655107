"""Typed configuration. Imports no jax; `python -m lmkit.train --help` lists every key."""

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import ModelConfig

__all__ = ["ConfigError", "Experiment", "GPTConfig", "ModelConfig"]
