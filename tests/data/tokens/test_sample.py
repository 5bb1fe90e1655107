"""Which texts train a tokenizer: budgets by weight, documents by a hash of their names."""

import random

import pytest

from lmkit.config.sections.data import SourceConfig
from lmkit.data.prepare import mean_weights
from lmkit.data.tokens.sample import Part, Sample, share_out


def part(weight: float, sizes: list[int], letter: str = "x") -> Part:
    return Part(weight, lambda: ((f"{letter}{n}", letter * size) for n, size in enumerate(sizes)))


@pytest.mark.parametrize("seed", range(40))
def test_budgets_follow_weights(seed: int) -> None:
    """All is given out where there is enough; who gets less than the others in proportion has no more."""
    rng = random.Random(seed)
    names = [f"s{n}" for n in range(rng.randint(1, 8))]
    have = {name: rng.choice([0, 7, 1000, 10**6, 10**9]) for name in names}
    weights = {name: rng.choice([1e-4, 0.1, 0.5, 3.0]) for name in names}
    limit = rng.choice([1, 10**4, 10**6])
    budgets = share_out(limit, have, weights)
    assert set(budgets) == set(names)
    assert all(0 <= budgets[name] <= have[name] for name in names)
    total = min(limit, sum(have.values()))
    assert total - len(names) < sum(budgets.values()) <= total
    short = [name for name in names if budgets[name] < have[name]]
    if short:
        level = min((budgets[name] + 1) / weights[name] for name in short) * (1 + 1e-9)
        assert all(budgets[name] / weights[name] <= level for name in short)
        assert all(have[name] / weights[name] <= level for name in names if name not in short)


def test_documents_are_spread_over_a_source_and_the_same_every_time() -> None:
    sample = Sample({"a": part(1.0, [10] * 1000)}, 2000)
    assert sample.used == {"a": {"documents": 200, "bytes": 2000, "of_documents": 1000, "of_bytes": 10_000}}
    numbers = sorted(sample._take["a"])
    assert 400 < sum(numbers) / 200 < 600, "not the first ones"
    assert list(sample) == list(sample) == list(Sample({"a": part(1.0, [10] * 1000)}, 2000))
    reordered = Part(1.0, lambda: ((f"x{n}", f"{n:010}") for n in reversed(range(1000))))
    assert {int(text) for text in Sample({"a": reordered}, 2000)} == set(numbers), "names decide, not places"


def test_a_small_source_is_taken_whole_and_a_large_document_cut() -> None:
    parts = {"a": part(0.5, [30, 20], "a"), "b": part(0.5, [10**6], "\u65e5"), "no": part(0.0, [500], "c")}
    sample = Sample(parts, 1000)
    assert [sample.used[name]["bytes"] for name in ("a", "b")] == [50, 950]
    assert "no" not in sample.used
    text = "".join(sample)
    assert (text.count("a"), text.count("\u65e5"), len(text)) == (50, 316, 366), "whole characters"


def test_no_more_is_kept_than_the_budget() -> None:
    best = Sample({"a": part(1.0, [100] * 5000)}, 1000)._take["a"]
    assert len(best) == 10
    assert list(Sample({"a": part(1.0, [])}, 10)) == []


def test_weights_that_move_count_half() -> None:
    parts = {"a": SourceConfig(weight=3.0), "b": SourceConfig(weight=1.0, final_weight=9.0)}
    assert mean_weights(parts) == pytest.approx({"a": (0.75 + 0.25) / 2, "b": (0.25 + 0.75) / 2})
