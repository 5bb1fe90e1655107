"""Which of several models is better on the same items, and whether that may be chance."""

from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.evaluate import EvaluateConfig
from lmkit.data.batches.windows import Windows
from lmkit.evaluate.own import Judged
from lmkit.evaluate.suite import Suite
from lmkit.metrics.bootstrap import paired_difference
from lmkit.pages.evaluation import ComparedTask

_MOST = 200  # items on which two differ that are kept


class Answers(NamedTuple):
    """What of a model's items is compared; the items of two models stand in the same order."""

    metric: str
    numbers: list[int]
    scores: np.ndarray  # [N], the higher the better
    texts: list[str]
    said: list[str]


def answers_of(suite: Suite) -> dict[str, Answers]:
    """The items of lm-eval's tasks."""
    return {
        name: Answers(metric, [one.number for one in items], np.array([one.score for one in items]),
                      [one.text for one in items], [one.said for one in items])
        for name, (metric, items) in suite.items.items()
    }  # fmt: skip


def own_answers(judged: Judged) -> dict[str, Answers]:
    """The examples of the models' own task."""
    metric, scores = judged.item_scores()
    names, told = _names(judged), [f"{score:.4f}" for score in scores]
    return {judged.task.batches.evaluated: Answers(metric, list(range(len(scores))), scores, names, told)}


def _names(judged: Judged) -> list[str]:
    """The names of documents, as far as they stand in one store; else numbers."""
    batches, examples = judged.task.batches, judged.examples
    if isinstance(batches, Windows) and examples.what == "documents" and len(examples.parts) == 1:
        (store,) = batches.stores.values()
        if len(store.document_ends(batches.evaluated)) == examples.sizes[0]:
            return [store.document_name(batches.evaluated, number) for number in range(examples.sizes[0])]
    return [f"{examples.what[:-1]} {number}" for number in range(sum(examples.sizes))]


def compare(a: dict[str, Answers], b: dict[str, Answers], config: EvaluateConfig, seed: int) -> list[ComparedTask]:
    """Each task with the difference of the mean scores, b - a."""
    return [_compared(name, a[name], b[name], config, seed) for name in a]


def _compared(name: str, a: Answers, b: Answers, config: EvaluateConfig, seed: int) -> ComparedTask:
    if a.numbers != b.numbers:
        raise ConfigError(
            f"evaluate.compare: {name} has {len(a.numbers):,} items for one model and {len(b.numbers):,} for another: "
            f"give both the same data with data= and data.paths="
        )
    how: dict[str, Any] = {"resamples": config.resamples or 1000, "confidence": config.confidence, "seed": seed}
    found = paired_difference(a.scores, b.scores, **how)
    differ = np.flatnonzero(a.scores != b.scores)
    order = differ[np.argsort(-np.abs(b.scores - a.scores)[differ], kind="stable")][:_MOST]
    rows = [(a.numbers[n], a.texts[n], a.said[n], b.said[n]) for n in order]
    if found.low <= 0 <= found.high:
        verdict = "no difference" if not found.value else "may be chance"
    else:
        verdict = "B is better" if found.value > 0 else "A is better"
    scores = (float(a.scores.mean()), float(b.scores.mean()))
    return ComparedTask(
        name, a.metric, len(a.numbers), scores, found.value, found.low, found.high, found.p, verdict, rows
    )
