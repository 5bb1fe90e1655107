"""Figures of what is held out: the mean loss, and those that the task is judged by."""

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmkit import metrics
from lmkit.config.sections.objective import WITH_CLASSES, ObjectiveKind
from lmkit.core.state import State
from lmkit.core.task import Task, bits_per_byte
from lmkit.objectives.build import Batch
from lmkit.objectives.sums import Sums

T = TypeVar("T")
_IN_FLIGHT = 4  # batches dispatched before the first is waited for


def in_flight(results: Iterable[T], most: int) -> Iterator[T]:
    """What was dispatched, in order: each is handed out, and so waited for, when `most` more are on their way."""
    waiting: deque[T] = deque()
    for one in results:
        waiting.append(one)
        if len(waiting) > most:
            yield waiting.popleft()
    yield from waiting


def evaluate(
    step: Callable[[State, Batch], tuple[Sums, Any]], state: State, batches: Iterable[tuple[str, Batch]], task: Task,
    progressed: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], np.ndarray | None]:  # fmt: skip
    """Means over all batches: eval/loss (nats, or squared error), eval/accuracy; and the confusion matrix, or None.

    Text adds eval/bits_per_byte or eval/perplexity; classes precision, recall and F1; numbers their errors. With a
    mixture also eval/<part>/..., and the plain names are means by the mixture's weights. `progressed()` is called for
    every batch that has come back.
    """
    totals: dict[str, list[Sums]] = {}
    truth: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # labels or targets, predictions, weights
    for part, batch in batches:
        sums, predicted = step(state, batch)
        totals.setdefault(part, []).append(sums)
        if predicted is not None:
            names = ("labels" if "labels" in batch else "targets", "weights")
            truth.append((to_host(batch[names[0]]), to_host(predicted), to_host(batch[names[1]])))
            progressed()
        elif len(totals[part]) > _IN_FLIGHT:
            jax.block_until_ready(totals[part][-_IN_FLIGHT])
            progressed()
    parts = {part: _means(task, part, results) for part, results in totals.items()}
    whole = sum(task.weights[part] for part in parts)
    names = next(iter(parts.values()))
    means = {
        f"eval/{name}": sum(task.weights[part] / whole * values[name] for part, values in parts.items())
        for name in names
    }
    if len(parts) > 1:
        means |= {f"eval/{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    if not truth:
        return means, None
    figures, matrix = _scores(task, *(np.concatenate(column) for column in zip(*truth, strict=True)))
    return means | {f"eval/{name}": value for name, value in figures.items()}, matrix


def _means(task: Task, part: str, results: list[Sums]) -> dict[str, float]:
    total = jax.tree.map(lambda *column: sum(map(float, column)), *jax.device_get(results))
    weight = total.weight or math.nan  # of a few rows none may have anything to learn
    nats = float(total.nll / weight)
    means = {"loss": nats}
    if task.kind is ObjectiveKind.causal_lm:
        means["bits_per_byte"] = bits_per_byte(task, part, nats)
    elif task.kind not in (*WITH_CLASSES, ObjectiveKind.regress, ObjectiveKind.contrastive):
        means["perplexity"] = metrics.perplexity(nats)
    if task.kind is not ObjectiveKind.regress:
        means["accuracy"] = float(total.correct / weight)
    return means


def _scores(
    task: Task, truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray
) -> tuple[dict[str, float], np.ndarray | None]:
    """Figures of all rows (or words) that weigh something, where the package for them is installed."""
    real = weights > 0
    if task.kind in WITH_CLASSES and len(task.labels) > 1 and metrics.available("classification"):
        figures = metrics.classification(truth[real], predicted[real], task.labels)
        return figures, metrics.confusion(truth[real], predicted[real], len(task.labels))
    if task.kind is ObjectiveKind.regress and metrics.available("regression"):
        return metrics.regression(truth[real], predicted[real]), None
    return {}, None


def to_host(x: jax.Array) -> np.ndarray:
    """A whole array, on every host."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))


def headline(means: dict[str, float]) -> str:
    """The figures of an evaluation that a line has room for."""
    shown = []
    for name, form in (
        ("loss", "{:.4f} nats"), ("bits_per_byte", "{:.4f} bits/byte"), ("perplexity", "perplexity {:.2f}"),
        ("accuracy", "accuracy {:.4f}"), ("f1", "F1 {:.4f}"), ("mse", "mean squared error {:.4g}"),
        ("r2", "R2 {:.4f}"), ("bleu", "BLEU {:.2f}"), ("chrf", "chrF {:.2f}"), ("wer", "WER {:.2%}"),
    ):  # fmt: skip
        value = means.get(f"eval/{name}", math.nan)
        if not math.isnan(value) and not (name == "loss" and "eval/mse" in means):
            shown.append(form.format(value))
    return ", ".join(shown)


def write_confusion(path: Path, matrix: np.ndarray, labels: list[str]) -> None:
    """Rows are the true classes, columns the predicted ones."""
    path.write_text(json.dumps({"labels": labels, "confusion": matrix.tolist()}) + "\n")
