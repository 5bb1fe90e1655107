"""Metrics called wrongly say what is wrong and the way out."""

from collections.abc import Callable
from typing import Any

import pytest

from lmkit import metrics
from lmkit.config.base import ConfigError

NAMES = ["no", "yes"]
WRONG: list[tuple[str, Callable[[], Any], str]] = [
    ("", lambda: metrics.require("bleu"), "no metric is called 'bleu'; there are classification"),
    ("", lambda: metrics.available("speach"), "no metric is called 'speach'.*Did you mean 'speech'"),
    ("classification", lambda: metrics.classification([0, 1], [0], NAMES), "2 references and 1 answers"),
    ("classification", lambda: metrics.classification([], [], NAMES), "nothing to score"),
    ("classification", lambda: metrics.classification([0.5], [1.0], NAMES), "labels are float64"),
    ("classification", lambda: metrics.classification([2], [1], NAMES), "labels reach from 2 to 2, there are 2"),
    ("classification", lambda: metrics.classification([[0, 1], [0]], [0, 1, 0], NAMES), "no array.*join their rows"),
    ("classification", lambda: metrics.classification([0], [0], ["no"]), "1 classes"),
    ("classification", lambda: metrics.confusion([0, 1], [0], 2), "2 references and 1 answers"),
    ("", lambda: metrics.format_confusion([[1, 0], [0, 1]], ["no"]), r"shape \(2, 2\) and 1 names"),
    ("regression", lambda: metrics.regression([1.0, 2.0], [1.0]), "2 references and 1 answers"),
    ("regression", lambda: metrics.regression(["a"], [1.0]), "targets are no array of numbers"),
    ("regression", lambda: metrics.regression([[1.0], [1.0, 2.0]], [1.0, 2.0]), "targets are no array of numbers"),
    ("regression", lambda: metrics.regression([1.0], [float("nan")]), "1 of the predictions are infinite or NaN"),
    ("translation", lambda: metrics.translation(["a", "b"], ["a"]), "2 references and 1 answers"),
    ("translation", lambda: metrics.translation("ab", "ab"), "references is a str; give a list of texts"),
    ("translation", lambda: metrics.translation(["a"], [3]), r"answers\[0\] is 3; each must be a text"),
    ("speech", lambda: metrics.speech(["a", "b"], ["a"]), "2 references and 1 answers"),
    ("speech", lambda: metrics.speech(["."], ["a"]), "hold no words"),
    ("speech", lambda: metrics.speech([None], ["a"]), r"references\[0\] is None"),
    ("", lambda: metrics.perplexity([1.0, 2.0]), r"nll=\[1.0, 2.0\]; give one number"),
    ("", lambda: metrics.perplexity(None), "nll=None; give one number"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "wrong", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_call(kind: str, wrong: Callable, message: str) -> None:
    if kind and not metrics.available(kind):
        pytest.skip(f"the package of {kind} is not installed")
    with pytest.raises(ConfigError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)
