"""Filters and draws. That the filters are those of transformers is in tests/interop/test_generate_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmkit.decode import Sampling
from lmkit.decode.sampling import choose, filtered

LOGITS = jnp.log(jnp.array([[0.5, 0.2, 0.15, 0.1, 0.05], [0.1, 0.6, 0.1, 0.1, 0.1]]))


def kept(**sampling: float) -> list[list[int]]:
    scores = filtered(LOGITS, None, Sampling(**({"temperature": 1.0} | sampling)))  # type: ignore[arg-type]
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in scores]


def test_filters_keep_what_they_should() -> None:
    assert kept() == [[0, 1, 2, 3, 4]] * 2
    assert kept(top_k=2)[0] == [0, 1]
    assert kept(top_k=99) == [[0, 1, 2, 3, 4]] * 2
    assert kept(top_p=0.6)[0] == [0, 1]  # 0.5 is not enough
    assert kept(top_p=0.49) == [[0], [1]]
    assert kept(top_p=0.0) == [[0], [1]]  # never nothing
    assert kept(min_p=0.25)[0] == [0, 1, 2]
    assert kept(top_k=3, top_p=0.7)[0] == [0, 1]  # of the three that are left: 0.59, 0.82


def test_a_temperature_divides() -> None:
    for temperature in (0.5, 2.0):
        np.testing.assert_allclose(filtered(LOGITS, None, Sampling(temperature=temperature)), LOGITS / temperature)
    np.testing.assert_array_equal(filtered(LOGITS, None, Sampling(temperature=0.0)), LOGITS)


def test_a_penalty_lowers_positive_and_negative_scores() -> None:
    seen = jnp.array([[True, False, True]])
    scores = filtered(jnp.array([[2.0, 2.0, -2.0]]), seen, Sampling(repetition_penalty=2.0))
    assert scores.tolist() == [[1.0, 2.0, -4.0]]


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0), Sampling(temperature=0.5, top_k=3)])
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    """20,000 rows of the same logits; an error of 4 standard deviations is one in 16,000."""
    count = 20_000
    logits = jnp.tile(LOGITS[:1], (count, 1))
    tokens = choose(logits, None, sampling, jax.random.key(0), jnp.arange(count), jnp.zeros(count, int))
    shares = np.bincount(tokens, minlength=5) / count
    expected = np.asarray(jax.nn.softmax(filtered(logits[:1], None, sampling))[0])
    assert (np.abs(shares - expected) <= 4 * np.sqrt(expected * (1 - expected) / count)).all()


def test_a_draw_depends_on_its_row_and_place_alone() -> None:
    def draw(rows: list[int], places: list[int]) -> list[int]:
        logits, key = jnp.zeros((len(rows), 1000)), jax.random.key(1)
        return choose(logits, None, Sampling(temperature=1.0), key, jnp.array(rows), jnp.array(places)).tolist()

    together = draw([0, 1, 2, 3], [5, 5, 5, 6])
    assert together[2:] == draw([2, 3], [5, 6])
    assert len(set(together)) == 4
    assert draw([0], [6]) != draw([0], [5])
