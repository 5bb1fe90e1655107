"""Filters and draws. That the filters are those of transformers is in tests/interop/test_generate_parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmkit.decode import Sampling
from lmkit.decode.sampling import RowSampling, choose, choose_rows, filtered, filtered_rows

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


ROWS = [
    Sampling(0.7), Sampling(1.3, top_k=5), Sampling(1.0, top_p=0.8), Sampling(0.9, min_p=0.1), Sampling(0.5, top_k=200),
    Sampling(1.0, top_k=7, top_p=0.6, min_p=0.05), Sampling(0.8, top_p=0.0), Sampling(1.0),
]  # fmt: skip


def each(samplings: list[Sampling], **more: float) -> RowSampling:
    """Rows with these numbers; `more` of RowSampling's columns."""
    columns = {"presence_B": 0.0, "frequency_B": 0.0} | more
    own = {"temperature_B": "temperature", "top_p_B": "top_p", "min_p_B": "min_p", "repetition_B": "repetition_penalty"}
    for column, name in own.items():
        columns[column] = [getattr(one, name) for one in samplings]  # type: ignore[assignment]
    rows = np.arange(len(samplings))
    return RowSampling(
        **{name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), rows.shape) for name, value in columns.items()},
        top_k_B=jnp.array([one.top_k for one in samplings]), index_B=jnp.asarray(rows),
        seed_B2=jnp.stack([rows, rows], axis=1).astype(jnp.uint32),
    )  # fmt: skip


def test_rows_with_their_own_numbers_are_filtered_as_alone() -> None:
    logits = 3 * jax.random.normal(jax.random.key(0), (len(ROWS), 101))
    together = jax.jit(filtered_rows)(logits, each(ROWS))
    for number, sampling in enumerate(ROWS):
        np.testing.assert_array_equal(together[number], filtered(logits[number][None], None, sampling)[0])


def test_rows_are_penalised_by_what_they_have_written() -> None:
    zero, count = jnp.zeros((1, 3)), jnp.array([[0, 1, 3]])
    scores = jnp.array([[1.0, 1.25, 1.5]])

    def chosen(bias: list[float], sampling: Sampling = Sampling(), **more: float) -> int:  # noqa: B008 (a tuple)
        return int(choose_rows(scores, count > 0, count, jnp.array([bias]), each([sampling], **more))[0])

    assert chosen([0.0, 0.0, 0.0]) == 2
    assert chosen([0.0, 0.0, 0.0], frequency_B=0.2) == 1  # 1, 1.05, 0.9
    assert chosen([0.0, 0.0, 0.0], presence_B=0.3) == 2  # once, however often: 1, 0.95, 1.2
    assert chosen([0.0, 0.0, 0.0], presence_B=0.6) == 0
    assert chosen([0.0, 0.0, 0.0], Sampling(repetition_penalty=1.6)) == 0
    assert chosen([0.0, 0.3, 0.0]) == 1
    assert int(choose_rows(scores, zero > 0, count, zero, each([Sampling(1.0, top_k=1)]))[0]) == 2


def test_a_rows_draw_follows_from_its_seed_and_index_alone() -> None:
    how, choose_jit = each([Sampling(1.0)] * 8), jax.jit(choose_rows)

    def drawn(how: RowSampling) -> list[int]:
        zero = jnp.zeros((len(how.index_B), 50))
        return choose_jit(zero, zero > 0, zero.astype(int), zero, how).tolist()

    every = drawn(how)
    assert every == [drawn(RowSampling(*(one[row : row + 1] for one in how)))[0] for row in range(8)]
    assert len(set(every)) > 4
    assert every != drawn(how._replace(seed_B2=how.seed_B2 + jnp.array([0, 1], jnp.uint32)))
    assert every != drawn(how._replace(index_B=how.index_B + 1))
