"""What an objective is, and the one that a configuration asks for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from lmkit.config.sections import ObjectiveConfig, ObjectiveKind
from lmkit.objectives.causal_lm import causal_lm
from lmkit.objectives.sums import Sums

Batch = dict[str, Any]  # name to an array [B, ...], or to its shape
# (model, batch, key) to sums; key None means evaluation (no dropout)
Objective = Callable[[Any, Batch, jax.Array | None], Sums]


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective of a configuration."""
    kinds = {ObjectiveKind.causal_lm: causal_lm}
    return partial(kinds[config.kind], config)
