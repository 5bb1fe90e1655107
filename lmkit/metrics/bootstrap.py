"""How sure a figure is: bootstrap over documents or examples (Efron and Tibshirani 1993, chapters 6 and 13)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], dict[str, float]]  # how often each example counts, [N], to figures by name


class Figure(NamedTuple):
    """A figure, its standard error and its confidence interval; NaN where none was asked for."""

    value: float
    stderr: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")


def bootstrap(
    statistic: Statistic, sizes: Sequence[int], *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Figure]:
    """The figures of all examples, each with its standard error and percentile interval.

    Args:
        statistic: figures of a sample, in which example i counts so many times.
        sizes: examples of each part; parts are drawn from apart.
    """
    plain = statistic(np.ones(sum(sizes)))
    if not resamples:
        return {name: Figure(value) for name, value in plain.items()}
    rng, found = np.random.default_rng(seed), {name: np.empty(resamples) for name in plain}
    for number in range(resamples):
        counts = [np.bincount(rng.integers(0, size, size), minlength=size) for size in sizes]
        for name, value in statistic(np.concatenate(counts).astype(float)).items():
            found[name][number] = value
    return {name: Figure(plain[name], *_spread(values, confidence)) for name, values in found.items()}


class Difference(NamedTuple):
    """Of the means of two models on the same items, b - a."""

    value: float
    low: float
    high: float
    p: float  # two-sided: how often a difference as large would come by chance


def paired_difference(
    a: np.ndarray, b: np.ndarray, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """The difference of two models' mean scores [N] of the same items, by a paired bootstrap (Koehn 2004).

    p is of the resampled differences, moved to mean 0; 1 where no item differs.
    """
    each = np.asarray(b, float) - np.asarray(a, float)
    value, rng = float(each.mean()), np.random.default_rng(seed)
    means = np.array([each[rng.integers(0, len(each), len(each))].mean() for _ in range(resamples)])
    if not each.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    _, low, high = _spread(means, confidence)
    p = (1 + np.count_nonzero(np.abs(means - value) >= abs(value) - 1e-12)) / (resamples + 1)
    return Difference(value, low, high, float(p))


def _spread(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan"), float("nan")
    rest = (1 - confidence) / 2
    low, high = np.quantile(known, [rest, 1 - rest])
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan"), float(low), float(high)
