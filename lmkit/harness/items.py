"""Items of a task as all that comes after needs them: score, confidence, what was chosen, what was right."""

from typing import Any, NamedTuple

import numpy as np

Json = dict[str, Any]
_SCORES = ("acc", "exact_match", "em", "f1", "acc_norm", "bleu", "chrf")  # of an item, in this order of preference
_CATEGORIES = ("category", "subject", "topic", "type", "difficulty", "level")


class Item(NamedTuple):
    """One item with what a model made of it."""

    number: int  # doc_id
    score: float  # the higher the better
    confidence: float  # probability of the chosen one among the choices; NaN where there are none
    truth_share: float  # probability of the right one among the choices; NaN where there are none
    text: str  # what was asked
    said: str
    truth: str
    category: str


def items_of(samples: list[Json]) -> tuple[str, list[Item]]:
    """The metric that stands for a task, and its items; of several filters the first."""
    first = samples[0]["filter"]
    samples = [one for one in samples if one["filter"] == first]
    metric = score_name(samples[0])
    summed = isinstance(samples[0][metric], tuple | list)  # of a perplexity the sum and its weight
    return "log_likelihood" if summed else metric, [_item(one, metric) for one in samples]


def score_name(sample: Json) -> str:
    """Of the metrics of an item, the one that says how good the answer is."""
    known = [name for name in sample["metrics"] if isinstance(sample[name], int | float | np.number)]
    return next((name for name in _SCORES if name in known), known[0] if known else sample["metrics"][0])


def _item(sample: Json, metric: str) -> Item:
    answers, arguments = sample["filtered_resps"], sample["arguments"]
    chosen, confidence, share, truth = 0, float("nan"), float("nan"), str(sample["target"])
    said = str(answers[0])
    if len(answers) > 1 and all(isinstance(one, tuple | list) and len(one) == 2 for one in answers):
        logits = np.array([float(one[0]) for one in answers])
        shares = np.exp(logits - logits.max())
        chosen = int(np.argmax(logits))
        confidence = float(shares[chosen] / shares.sum())
        said = str(arguments[chosen][1])
        if isinstance(sample["target"], int) and 0 <= sample["target"] < len(arguments):
            truth = str(arguments[sample["target"]][1])
            share = float(shares[sample["target"]] / shares.sum())
    score = sample[metric]
    if isinstance(score, tuple | list):
        score = score[0] / max(score[1], 1)
    doc = sample["doc"] if isinstance(sample["doc"], dict) else {}
    category = next((str(doc[name]) for name in _CATEGORIES if isinstance(doc.get(name), str | int)), "")
    return Item(sample["doc_id"], float(score), confidence, share, str(arguments[chosen][0]), said, truth, category)


def text_of(doc: Any) -> str:
    """All text of an item, its choices among it."""
    if isinstance(doc, str):
        return doc
    if isinstance(doc, dict):
        return " ".join(filter(None, map(text_of, doc.values())))
    return " ".join(filter(None, map(text_of, doc))) if isinstance(doc, list | tuple) else ""


def calibration(
    confidence: np.ndarray, right: np.ndarray, bins: int = 10
) -> tuple[list[tuple[float, float, int]], float]:
    """(mean confidence, accuracy, items) of each bin of confidence, and the expected calibration error.

    The error is the mean distance between both, by items (Guo et al. 2017, equation 3); NaN with no confidences.
    """
    known = np.isfinite(confidence)
    confidence, right = confidence[known], right[known]
    if not len(right):
        return [], float("nan")
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    found = [(float(confidence[place == n].mean()), float(right[place == n].mean()), int((place == n).sum()))
             for n in range(bins) if (place == n).any()]  # fmt: skip
    return found, float(sum(abs(a - b) * count for a, b, count in found) / len(right))
