"""Metrics against values worked out by hand; bad input is refused in words."""

import math
import sys

import numpy as np
import pytest

from lmkit import metrics
from lmkit.config import ConfigError

CLASSES = ["cat", "dog", "owl"]


def test_two_classes_by_hand() -> None:
    # of class 1: 2 hits, 1 false alarm, 2 misses; of class 0: 3 hits, 2 false alarms, 1 miss
    labels, predicted = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 0, 0]
    scores = metrics.classification(labels, predicted, ["no", "yes"])
    assert scores == pytest.approx(
        {
            "accuracy": 5 / 8,
            "precision": 2 / 3,
            "recall": 2 / 4,
            "f1": 4 / 7,
            "macro_precision": (3 / 5 + 2 / 3) / 2,
            "macro_recall": (3 / 4 + 2 / 4) / 2,
            "macro_f1": (6 / 9 + 4 / 7) / 2,
        }
    )


def test_many_classes_are_averaged() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 2])
    scores = metrics.classification(labels, predicted, CLASSES)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["precision"] == scores["macro_precision"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert scores["recall"] == scores["macro_recall"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert scores["f1"] == scores["macro_f1"] == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)
    # a class that neither side names does not pull the mean down; one that is never predicted does, without a warning
    assert metrics.classification([0, 1], [0, 1], CLASSES)["f1"] == 1.0
    assert metrics.classification([0, 1, 2], [0, 1, 1], CLASSES)["recall"] == pytest.approx(2 / 3)


def test_positive_class_that_never_occurs() -> None:
    scores = metrics.classification([0, 0], [0, 0], ["no", "yes"])
    assert (scores["accuracy"], scores["f1"], scores["macro_f1"]) == (1.0, 0.0, 1.0)


def test_confusion_has_truth_in_rows() -> None:
    matrix = metrics.confusion([0, 0, 1, 1], [0, 1, 1, 1], 3)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert matrix.dtype == np.int64
    assert metrics.format_confusion(matrix, CLASSES).splitlines() == [
        "true | cat dog owl | recall",
        " cat |   1   1   0 |  0.500",
        " dog |   0   2   0 |  1.000",
        " owl |   0   0   0 |      -",
    ]


def test_many_classes_are_told_by_their_errors() -> None:
    names = [f"class{number}" for number in range(30)]
    matrix = np.diag(np.full(30, 9))
    assert metrics.format_confusion(matrix, names) == "no errors"
    matrix[3, 4], matrix[7, 1] = 2, 5
    first, second = metrics.format_confusion(matrix, names).splitlines()
    assert first.split() == ["class7", "taken", "for", "class1", "5"]
    assert second.split() == ["class3", "taken", "for", "class4", "2"]


def test_regression_by_hand() -> None:
    # errors 0, 1, -2; the targets' squared distance from their mean 2 is 2
    scores = metrics.regression([1.0, 2.0, 3.0], [1.0, 3.0, 1.0])
    assert scores == pytest.approx({"mse": 5 / 3, "mae": 1.0, "r2": 1 - 5 / 2})
    assert metrics.regression([[1.0, 5.0]], [[2.0, 5.0]])["mse"] == 0.5
    assert math.isnan(metrics.regression([1.0], [1.0])["r2"])


def test_translation() -> None:
    same = ["the cat sat on the mat", "it was warm there"]
    assert metrics.translation(same, same) == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    # "the cat sat on a mat": precisions 5/6, 3/5, 2/4, 1/3; no brevity penalty
    scores = metrics.translation(same[:1], ["the cat sat on a mat"])
    assert scores["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert 50 < scores["chrf"] < 100
    # a short hypothesis pays exp(1 - 6 / 5)
    assert metrics.translation(same[:1], ["the cat sat on the"])["bleu"] == pytest.approx(100 * math.exp(-0.2))
    assert "tok:13a" in metrics.translation_signature()
    assert "chrf|" in metrics.translation_signature()


def test_speech_by_hand() -> None:
    # of 5 words: one replaced, one left out, one put in
    scores = metrics.speech(["Three, nine; one!", "don't stop"], ["three five", "dont stop now"])
    assert scores["wer"] == pytest.approx(3 / 5)
    assert metrics.speech(["abcd"], ["abxd"])["cer"] == pytest.approx(1 / 4)
    assert metrics.speech(["Twenty-one."], ["twenty one"]) == {"wer": 0.0, "cer": 0.0}
    assert metrics.speech(["one"], ["one one one"])["wer"] == 2.0
    assert metrics.speech(["", "one two"], ["one", "one two"])["wer"] == 0.5  # words heard in silence count


def test_perplexity() -> None:
    assert metrics.perplexity(math.log(7)) == pytest.approx(7)
    assert metrics.perplexity(1e9) == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.classification([], [], CLASSES), "nothing to score"),
        (lambda: metrics.classification([0, 1], [0], CLASSES), "2 references and 1 answers"),
        (lambda: metrics.classification([0, 3], [0, 1], CLASSES), "labels reach from 0 to 3, there are 3 classes"),
        (lambda: metrics.classification([0, 1], [-1, 1], CLASSES), "predictions reach from -1"),
        (lambda: metrics.classification([0.5], [0], CLASSES), "class numbers"),
        (lambda: metrics.classification([0], [0], ["one"]), "at least 2"),
        (lambda: metrics.confusion([2], [0], 2), "2 classes"),
        (lambda: metrics.format_confusion(np.eye(2, dtype=int), CLASSES), r"\(2, 2\) and 3 names"),
        (lambda: metrics.regression([], []), "nothing to score"),
        (lambda: metrics.regression([1.0], [1.0, 2.0]), "1 references and 2 answers"),
        (lambda: metrics.regression([[1.0, 2.0]], [[1.0]]), r"\(1, 2\), predictions \(1, 1\)"),
        (lambda: metrics.regression([1.0, 2.0], [1.0, math.nan]), "1 of the predictions"),
        (lambda: metrics.translation([], []), "nothing to score"),
        (lambda: metrics.translation(["a"], []), "1 references and 0 answers"),
        (lambda: metrics.speech(["a"], ["a", "b"]), "1 references and 2 answers"),
        (lambda: metrics.speech(["", "?!"], ["a", "b"]), "2 references hold no words"),
        (lambda: metrics.require("translaton"), "Did you mean 'translation'"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(
    ("kind", "package"), [("classification", "sklearn"), ("translation", "sacrebleu"), ("speech", "jiwer")]
)
def test_a_missing_package_names_the_extra(kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.require(kind)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}.*pip install 'lmkit\[metrics\]'"):
        metrics.require(kind)
