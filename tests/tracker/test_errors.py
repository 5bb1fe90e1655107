"""Trackers made or used wrongly say what is wrong and the way out."""

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from lmkit.config.base import ConfigError
from lmkit.config.sections.tracker import TrackerConfig
from lmkit.tracker import build_trackers, forget_after, read_rows

NONE = TrackerConfig(names=[])


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda p: build_trackers(TrackerConfig(names=["wandbb"]), p, {}), "no tracker 'wandbb'. Did you mean 'wandb'"),
    (lambda p: build_trackers(NONE, p / "nowhere", {}), "nowhere, which is no folder: make it first"),
    (lambda p: build_trackers(NONE, p, {}).log(1, {"loss": "low"}), "metric 'loss' is 'low': log plain numbers"),
    (lambda p: build_trackers(NONE, p, {}).log(1, {"loss": jnp.ones(())}), r"metric 'loss' is Array.*float\(loss\)"),
])  # fmt: skip
def test_a_wrong_call(tmp_path: Path, wrong: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong(tmp_path)


def test_paths_as_text(tmp_path: Path) -> None:
    trackers = build_trackers(NONE, str(tmp_path), {})
    trackers.log(1, {"loss": 2.0})
    trackers.log(2, {"loss": 1.0})
    trackers.close()
    forget_after(str(tmp_path), 1)
    assert [row["loss"] for row in read_rows(f"{tmp_path}/metrics.jsonl")] == [2.0]
