"""Intervals: they cover the truth as often as they say, and a pair of equal models does not differ."""

import numpy as np
import pytest

from lmkit.metrics.bootstrap import bootstrap, paired_difference


def test_the_intervals_cover_as_often_as_they_say() -> None:
    """Of 400 samples of 120 documents, 87 to 93 % have the true ratio of two sums in their 90 % interval."""
    rng, hits = np.random.default_rng(1), 0
    for number in range(400):
        size = rng.lognormal(3, 0.6, 120)
        nats = size * rng.gamma(8, 0.25, 120)  # 2 nats a token in the mean

        def ratio(counts: np.ndarray, size=size, nats=nats) -> dict[str, float]:
            return {"loss": float(counts @ nats / (counts @ size))}

        one = bootstrap(ratio, [120], resamples=300, confidence=0.9, seed=number)["loss"]
        hits += one.low <= 2.0 <= one.high
    assert 0.87 <= hits / 400 <= 0.93


def test_parts_are_drawn_from_apart() -> None:
    values = np.array([0.0] * 50 + [10.0] * 50)

    def mean(counts: np.ndarray) -> dict[str, float]:
        return {"mean": float(counts @ values / counts.sum())}

    assert bootstrap(mean, [50, 50], resamples=50)["mean"].stderr == pytest.approx(0, abs=1e-12)
    assert bootstrap(mean, [100], resamples=50)["mean"].stderr > 0.2


def test_paired_differences() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(200)
    same = paired_difference(a, a)
    assert same == (0.0, 0.0, 0.0, 1.0)
    better = paired_difference(a, a + 0.05 + 0.1 * rng.standard_normal(200))
    assert better.low > 0
    assert better.p < 0.01
    chance = paired_difference(a, rng.permutation(a))
    assert chance.low < 0 < chance.high
    assert chance.p > 0.1
