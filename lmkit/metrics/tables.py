"""Classes and numbers: accuracy, precision, recall, F1, the confusion matrix; squared and absolute error, R².

N examples, C classes, K numbers an example.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from lmkit.config.base import ConfigError
from lmkit.metrics.packages import check_pairs, require

_MOST_COLUMNS = 20  # a wider matrix is told by its largest errors
_NAME_WIDTH = 16


def classification(labels: ArrayLike, predicted: ArrayLike, names: Sequence[str]) -> dict[str, float]:
    """Scores of the predicted classes [N] against the labels [N], both in range(len(names)).

    `accuracy`, `macro_precision`, `macro_recall`, `macro_f1`; and `precision`, `recall`, `f1`, which are those of the
    second class where there are two and the macro ones otherwise. A macro score is the mean over the classes that
    occur in labels or predictions, as in scikit-learn; a class that is never predicted has precision 0.
    """
    labels, predicted = _classes(labels, predicted, len(names))
    occurring = np.union1d(labels, predicted)
    score = require("classification").precision_recall_fscore_support
    macro = score(labels, predicted, labels=occurring, average="macro", zero_division=0)[:3]
    plain = macro
    if len(names) == 2:
        plain = [each[1] for each in score(labels, predicted, labels=[0, 1], zero_division=0)[:3]]
    scores = {"accuracy": float(np.mean(labels == predicted))}
    for name, value, mean in zip(("precision", "recall", "f1"), plain, macro, strict=True):
        scores |= {name: float(value), f"macro_{name}": float(mean)}
    return scores


def confusion(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> np.ndarray:
    """int64 [C, C]: how many examples of class `row` were predicted as class `column`."""
    labels, predicted = _classes(labels, predicted, num_classes)
    matrix = require("classification").confusion_matrix(labels, predicted, labels=np.arange(num_classes))
    return matrix.astype(np.int64)


def format_confusion(matrix: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix for a terminal, with each class's recall; beyond 20 classes the 20 most frequent errors."""
    matrix = np.asarray(matrix)
    if matrix.shape != (len(names), len(names)):
        raise ConfigError(f"a confusion matrix of shape {matrix.shape} and {len(names)} names; give one name a class")
    short = [name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + "…" for name in names]
    left = max(len(name) for name in [*short, "true"])
    if len(names) > _MOST_COLUMNS:
        errors = matrix * (1 - np.eye(len(names), dtype=matrix.dtype))
        worst = np.argsort(-errors, axis=None, kind="stable")[:_MOST_COLUMNS]
        cells = [(int(errors.flat[cell]), *divmod(int(cell), len(names))) for cell in worst]
        lines = [f"{short[true]:>{left}} taken for {short[guess]:<{left}} {count:>8}" for count, true, guess in cells
                 if count]  # fmt: skip
        return "\n".join(lines) or "no errors"
    widths = [max(len(name), len(str(column.max()))) for name, column in zip(short, matrix.T, strict=True)]
    head = " ".join(f"{name:>{width}}" for name, width in zip(short, widths, strict=True))
    lines = [f"{'true':>{left}} | {head} | recall"]
    for number, (name, row) in enumerate(zip(short, matrix, strict=True)):
        cells = " ".join(f"{count:>{width}}" for count, width in zip(row, widths, strict=True))
        recall = f"{row[number] / row.sum():.3f}" if row.sum() else "-"
        lines.append(f"{name:>{left}} | {cells} | {recall:>6}")
    return "\n".join(lines)


def regression(targets: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """`mse`, `mae` and `r2` of predictions [N] or [N, K] against targets of that shape; K is averaged over.

    R² of a single example is not defined and is given as NaN.
    """
    package = require("regression")
    truth, answers = _numbers("targets", targets), _numbers("predictions", predicted)
    check_pairs("regression", np.atleast_1d(truth), np.atleast_1d(answers))
    if truth.shape != answers.shape or truth.ndim > 2:
        raise ConfigError(f"regression: targets {truth.shape}, predictions {answers.shape}; both must be [N] or [N, K]")
    for name, values in (("targets", truth), ("predictions", answers)):
        if not np.isfinite(values).all():
            raise ConfigError(f"regression: {int((~np.isfinite(values)).sum())} of the {name} are infinite or NaN")
    return {
        "mse": float(package.mean_squared_error(truth, answers)),
        "mae": float(package.mean_absolute_error(truth, answers)),
        "r2": float(package.r2_score(truth, answers)) if len(truth) > 1 else float("nan"),
    }


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"regression: {name} are no array of numbers: {error}") from error


def _classes(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    if num_classes < 2:
        raise ConfigError(f"classification: {num_classes} classes; it takes at least 2 names")
    try:
        pair = np.asarray(labels).reshape(-1), np.asarray(predicted).reshape(-1)
    except ValueError as error:  # rows of different lengths
        raise ConfigError(f"classification: labels or predictions are no array: {error}; join their rows") from error
    check_pairs("classification", *pair)
    for name, values in zip(("labels", "predictions"), pair, strict=True):
        if values.dtype.kind not in "iu":
            raise ConfigError(f"classification: {name} are {values.dtype}; they must be class numbers (integers)")
        if values.min() < 0 or values.max() >= num_classes:
            raise ConfigError(
                f"classification: {name} reach from {values.min()} to {values.max()}, there are {num_classes} classes "
                f"(0 to {num_classes - 1}); give a name for each class"
            )
    return pair
