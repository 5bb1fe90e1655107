"""Figures of what is held out, by hand."""

import math
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lmkit.config.sections.objective import ObjectiveKind
from lmkit.core.evaluation import evaluate
from lmkit.objectives.sums import Sums


def test_means_go_over_tokens_within_a_part_and_over_parts_by_the_mixtures_weights() -> None:
    """The loss is the plain cross-entropy, whatever smoothing and z-loss add in training."""
    task: Any = SimpleNamespace(
        kind=ObjectiveKind.causal_lm, weights={"a": 3.0, "b": 1.0, "not evaluated": 4.0},
        bytes_per_token={"a": 2.0, "b": 4.0},
    )  # fmt: skip
    sums = [  # loss, weight, nll, correct
        ("a", (9.0, 1.0, 2.0, 1.0)), ("b", (9.0, 2.0, 6.0, 2.0)), ("a", (9.0, 3.0, 4.0, 0.0)),
    ]  # fmt: skip
    batches = [(part, {"sums": Sums(*map(jnp.float32, row))}) for part, row in sums]
    means, matrix = evaluate(lambda state, batch: (batch["sums"], None), {}, batches, task)
    bit = math.log(2)
    assert means == pytest.approx({
        "eval/a/loss": 1.5, "eval/a/accuracy": 0.25, "eval/a/bits_per_byte": 0.75 / bit,
        "eval/b/loss": 3.0, "eval/b/accuracy": 1.0, "eval/b/bits_per_byte": 0.75 / bit,
        "eval/loss": 1.875, "eval/accuracy": 0.4375, "eval/bits_per_byte": 0.75 / bit,
    })  # fmt: skip
    assert matrix is None


def test_a_long_evaluation_reports_every_batch_that_has_come_back() -> None:
    task: Any = SimpleNamespace(kind=ObjectiveKind.chat, weights={"a": 1.0}, labels=[])
    one, back = Sums(*map(jnp.float32, (1.0, 1.0, 1.0, 1.0))), []
    evaluate(lambda state, batch: (one, None), {}, [("a", {})] * 20, task, lambda: back.append(1))
    assert len(back) >= 15  # the last ones are on their way


def test_rows_without_weight_are_not_judged() -> None:
    pytest.importorskip("sklearn", reason="LOUD: scikit-learn is not installed, figures of classes are not tested")
    task: Any = SimpleNamespace(kind=ObjectiveKind.classify, weights={"a": 1.0}, labels=["x", "y"])
    batch = {"labels": jnp.array([0, 1, 1, 0]), "weights": jnp.array([1.0, 0.5, 1.0, 0.0])}
    predicted, sums = jnp.array([0, 0, 1, 1]), Sums(*map(jnp.float32, (1.0, 2.5, 1.0, 2.0)))
    means, matrix = evaluate(lambda state, batch: (sums, predicted), {}, [("a", batch)], task)
    assert matrix is not None
    np.testing.assert_array_equal(matrix, [[1, 0], [1, 1]])
    assert means["eval/accuracy"] == pytest.approx(2 / 3)


def test_rows_that_weigh_nothing_at_all_have_no_mean() -> None:
    task: Any = SimpleNamespace(kind=ObjectiveKind.chat, weights={"a": 1.0}, labels=[], bytes_per_token={})
    nothing = Sums(*[jnp.zeros(())] * 4)
    means, _ = evaluate(lambda state, batch: (nothing, None), {}, [("a", {})], task)
    assert set(means) == {"eval/loss", "eval/perplexity", "eval/accuracy"}
    assert all(math.isnan(value) for value in means.values())
