"""What is made of lm-eval's samples: score, confidence, calibration; and the files in its layout."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lmkit.harness.files import write_samples
from lmkit.harness.items import calibration, items_of, text_of

SAMPLE = {
    "doc_id": 3, "doc": {"question": "why", "choices": ["a", "b"], "category": "odd"}, "target": 1, "filter": "none",
    "arguments": [("why", " a"), ("why", " b")], "resps": [[(-1.0, True)], [(-2.0, False)]],
    "filtered_resps": [(-1.0, True), (-2.0, False)], "metrics": ["acc", "acc_norm"], "acc": 0.0, "acc_norm": 1.0,
}  # fmt: skip


def test_an_item_with_choices() -> None:
    metric, (item,) = items_of([SAMPLE, SAMPLE | {"filter": "other"}])
    assert metric == "acc"
    assert (item.number, item.score, item.said, item.truth, item.category) == (3, 0.0, " a", " b", "odd")
    assert item.confidence == pytest.approx(1 / (1 + math.exp(-1)))
    assert item.truth_share == pytest.approx(1 - item.confidence)
    assert text_of(SAMPLE["doc"]) == "why a b odd"


def test_a_text_and_a_perplexity() -> None:
    text = SAMPLE | {"filtered_resps": ["said"], "arguments": [("why", {})], "target": "b", "metrics": ["exact_match"],
                     "exact_match": 1.0}  # fmt: skip
    (item,) = items_of([text])[1]
    assert (item.number, item.score, item.said) == (3, 1.0, "said")
    assert math.isnan(item.confidence)
    rolled = text | {"metrics": ["bits_per_byte"], "bits_per_byte": (-30.0, 10)}
    metric, (item,) = items_of([rolled])
    assert (metric, item.score) == ("log_likelihood", -3.0)


def test_calibration() -> None:
    confidence, right = np.array([0.95] * 10 + [0.55] * 10 + [math.nan]), np.array([1.0] * 9 + [0.0] * 11 + [1.0])
    bins, error = calibration(confidence, right)
    assert bins == [(pytest.approx(0.55), 0.0, 10), (pytest.approx(0.95), pytest.approx(0.9), 10)]
    assert error == pytest.approx((0.55 + 0.05) / 2)
    assert calibration(np.array([math.nan]), np.array([1.0]))[0] == []


def test_samples_have_lm_evals_layout(tmp_path: Path) -> None:
    write_samples(tmp_path, {"a/b": [SAMPLE]})
    row = json.loads((tmp_path / "samples_a_b.jsonl").read_text())
    assert row["arguments"]["gen_args_1"] == {"arg_0": "why", "arg_1": " b"}
    assert row["resps"] == [[["-1.0", "True"]], [["-2.0", "False"]]]
    assert row["target"] == "1"
    assert SAMPLE["target"] == 1
