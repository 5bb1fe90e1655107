"""Rows that damaged files have cost: counted over all processes of a job."""

import json
from types import SimpleNamespace

import pytest

from lmkit import hosts
from lmkit.config.sections.data import DataConfig, OnCorrupt
from lmkit.train.main import Loop


def test_what_each_process_left_out_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def gather(label: str, text: str) -> list[str]:
        asked.append(label)
        return [text, json.dumps({"a is damaged": 2, "b is damaged": 5}), "{}"]

    monkeypatch.setattr(hosts, "gather", gather)
    task = SimpleNamespace(batches=SimpleNamespace(lost=lambda: {"a is damaged": 3}))
    for how, expected in ((OnCorrupt.skip, {"a is damaged": 5, "b is damaged": 5}), (OnCorrupt.fail, {})):
        loop = SimpleNamespace(experiment=SimpleNamespace(data=DataConfig(on_corrupt=how)), task=task)
        assert Loop._lost(loop) == expected  # type: ignore[arg-type]
    assert asked == ["lost rows"], "nobody waits where nothing is skipped"
