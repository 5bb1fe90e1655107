"""What an objective is, and the one that a configuration asks for."""

from collections.abc import Callable
from typing import Any

import jax

from lmkit.config.sections.objective import ObjectiveConfig, ObjectiveKind
from lmkit.nn.auxiliary import collecting
from lmkit.objectives.check import check_fit
from lmkit.objectives.labels import classify, contrastive, regress
from lmkit.objectives.router import add_router
from lmkit.objectives.sums import Sums
from lmkit.objectives.tokens import Batch, causal_lm, masked_lm, seq2seq

# (model, batch, key) to sums, and to what is predicted of each row where rows are judged by more than their loss;
# key None means evaluation (no dropout)
Objective = Callable[[Any, Batch, jax.Array | None], tuple[Sums, Any]]
OBJECTIVES = {
    ObjectiveKind.causal_lm: causal_lm,
    ObjectiveKind.chat: causal_lm,
    ObjectiveKind.masked_lm: masked_lm,
    ObjectiveKind.seq2seq: seq2seq,
    ObjectiveKind.span_corruption: seq2seq,
    ObjectiveKind.classify: classify,
    ObjectiveKind.classify_tokens: classify,
    ObjectiveKind.regress: regress,
    ObjectiveKind.contrastive: contrastive,
}


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective of a configuration, with what a model's routers add to its loss.

    It raises ConfigError for a model or a batch that it cannot learn with.
    """

    def objective(model: Any, batch: Batch, key: jax.Array | None) -> tuple[Sums, Any]:
        check_fit(config.kind, model, batch)
        with collecting() as auxiliary:
            sums, predicted = OBJECTIVES[config.kind](config, model, batch, key)
        return add_router(model.config, sums, auxiliary), predicted

    return objective
