"""The figures of a task from its examples, with their intervals: each a function of how often an example counts."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmkit import metrics
from lmkit.config.sections.evaluate import EvaluateConfig
from lmkit.config.sections.objective import WITH_CLASSES, ObjectiveKind
from lmkit.core.task import Task
from lmkit.evaluate.examples import Examples
from lmkit.metrics.bootstrap import Figure, Statistic, bootstrap

_RECALLS = (1, 5, 10)
_CHUNK = 1024  # queries whose similarities exist at once


def figures_of(task: Task, examples: Examples, config: EvaluateConfig, seed: int) -> dict[str, Figure]:
    """The figures that a task is judged by; those of classes and numbers need scikit-learn nowhere."""
    statistic = _statistic(task, examples)
    how: dict[str, Any] = {"resamples": config.resamples, "confidence": config.confidence, "seed": seed}
    return bootstrap(statistic, examples.sizes, **how)


def figures_of_texts(references: list[str], texts: list[str], speech: bool, config: EvaluateConfig, seed: int) -> dict:
    """BLEU and chrF of translations, or word and character error rates of speech."""
    statistic = _speech(references, texts) if speech else _translation(references, texts)
    how: dict[str, Any] = {"resamples": config.resamples, "confidence": config.confidence, "seed": seed}
    return bootstrap(statistic, [len(texts)], **how)


def _statistic(task: Task, examples: Examples) -> Statistic:
    columns = examples.columns
    if task.kind is ObjectiveKind.contrastive:
        return _retrieval(columns["image"], columns["text"])
    if task.kind is ObjectiveKind.regress:
        return _numbers(columns["targets"], columns["predicted"], columns["weight"])
    if task.kind in WITH_CLASSES:
        return _classes(columns, len(task.labels))

    def over_tokens(counts: np.ndarray) -> dict[str, float]:
        whole, found = sum(task.weights.values()), {}
        for number, part in enumerate(examples.parts):
            here = examples.of(number)
            sums = {name: float(counts[here] @ value[here]) for name, value in columns.items()}
            weight = sums["weight"] or math.nan
            one = {"loss": sums["nll"] / weight, "accuracy": sums["correct"] / weight}
            if sums.get("bytes"):
                one["bits_per_byte"] = sums["nll"] / math.log(2) / sums["bytes"]
            for name, value in one.items():
                found[name] = found.get(name, 0.0) + task.weights[part] / whole * value
                if len(examples.parts) > 1:
                    found[f"{part}/{name}"] = value
        return found | ({} if "bytes" in columns else {"perplexity": metrics.perplexity(found["loss"])})

    return over_tokens


def _classes(columns: dict[str, np.ndarray], classes: int) -> Statistic:
    labels, predicted = (columns[name] for name in ("labels", "predicted"))
    weight = (columns["weight"] > 0).astype(float)  # as in training's evaluation, where a weight only says: it counts
    wide = (1,) * (labels.ndim - 1)
    flat_labels, flat_predicted, right = labels.reshape(-1), predicted.reshape(-1), labels == predicted

    def statistic(counts: np.ndarray) -> dict[str, float]:
        each = counts.reshape(-1, *wide) * weight
        total = float(each.sum()) or math.nan
        hit, truth, said = (
            np.bincount(ids, (each * mask).reshape(-1), classes)
            for ids, mask in ((flat_labels, right), (flat_labels, 1.0), (flat_predicted, 1.0))
        )
        loss = float((each * columns["weight"] * columns["nll"]).sum() / (each * columns["weight"]).sum())
        return {"loss": loss, "accuracy": float(hit.sum() / total), **precision_recall_f1(hit, truth, said)}

    return statistic


def precision_recall_f1(hit: np.ndarray, truth: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """From how often each class was right, true and predicted, [C]; names and zeros as in `metrics.classification`."""
    precision, recall = (np.divide(hit, of, out=np.zeros_like(hit), where=of > 0) for of in (said, truth))
    f1 = np.divide(2 * hit, said + truth, out=np.zeros_like(hit), where=said + truth > 0)
    occurring = said + truth > 0
    found = {}
    for name, each in (("precision", precision), ("recall", recall), ("f1", f1)):
        macro = float(each[occurring].mean()) if occurring.any() else math.nan
        found |= {name: float(each[1]) if len(each) == 2 else macro, f"macro_{name}": macro}
    return found


def _numbers(targets: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> Statistic:
    truth, error = targets.astype(float), predicted.astype(float) - targets

    def statistic(counts: np.ndarray) -> dict[str, float]:
        each = counts * (weight > 0)
        total = each.sum()
        mse, mean = float(each @ error**2 / total), each @ truth / total
        spread = float(each @ (truth - mean) ** 2 / total)
        mae = float(each @ np.abs(error) / total)
        return {"mse": mse, "mae": mae, "r2": 1 - mse / spread if spread else math.nan}

    return statistic


def _retrieval(image_NP: np.ndarray, text_NP: np.ndarray) -> Statistic:
    """recall@k of an image's own text among all texts, and of a text's own image."""
    ranks = {"text": _ranks(image_NP, text_NP), "image": _ranks(text_NP, image_NP)}

    def statistic(counts: np.ndarray) -> dict[str, float]:
        return {f"{name}_recall@{k}": float(counts @ (rank < k) / counts.sum())
                for name, rank in ranks.items() for k in _RECALLS}  # fmt: skip

    return statistic


def _ranks(queries_NP: np.ndarray, keys_NP: np.ndarray) -> np.ndarray:
    """int [N]: how many keys are more like a query than its own one."""
    found = []
    for first in range(0, len(queries_NP), _CHUNK):
        similar = queries_NP[first : first + _CHUNK] @ keys_NP.T
        own = similar[np.arange(len(similar)), first + np.arange(len(similar))]
        found.append((similar > own[:, None]).sum(axis=1))
    return np.concatenate(found)


def _translation(references: Sequence[str], texts: Sequence[str]) -> Statistic:
    package = metrics.require("translation")
    scorers = {"bleu": package.BLEU(), "chrf": package.CHRF()}
    # The sums that a corpus's score is made of, by sentence: sacrebleu's own bootstrap goes the same way.
    stats = {name: np.array(one._extract_corpus_statistics(list(texts), [list(references)]), float)
             for name, one in scorers.items()}  # fmt: skip

    def statistic(counts: np.ndarray) -> dict[str, float]:
        return {name: one._compute_score_from_stats((counts @ stats[name]).astype(int).tolist()).score
                for name, one in scorers.items()}  # fmt: skip

    return statistic


def _speech(references: Sequence[str], texts: Sequence[str]) -> Statistic:
    sums = metrics.speech_errors(references, texts)

    def statistic(counts: np.ndarray) -> dict[str, float]:
        return {name: float(counts @ wrong / max(counts @ length, 1.0)) for name, (wrong, length) in sums.items()}

    return statistic
