"""The figures hold what the runs logged, where it belongs, as well-formed SVG."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from helpers import ROOT

SVG = "{http://www.w3.org/2000/svg}"


def make_run(folder: Path, accuracies: list[float]) -> Path:
    """A run's directory: a loss that falls as 2 - step / 100, an accuracy, two classes."""
    folder.mkdir()
    rows = [{"step": step, "train/loss": 2 - step / 100} for step in range(10, 101, 10)]
    rows += [{"step": 50 * (n + 1), "eval/loss": 1.5, "eval/accuracy": x} for n, x in enumerate(accuracies)]
    rows.append({"step": 100, "train/loss": None})  # not finite
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "confusion.json").write_text(json.dumps({"labels": ["a<b", "c"], "confusion": [[3, 1], [0, 4]]}))
    return folder


def draw(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "figures.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def read(path: Path) -> tuple[ElementTree.Element, list[str]]:
    root = ElementTree.parse(path).getroot()
    return root, [node.text or "" for node in root.iter(f"{SVG}text")]


def points(root: ElementTree.Element, kind: str) -> list[list[tuple[float, float]]]:
    paths = [node.get("d", "") for node in root.iter(f"{SVG}path") if node.get("class") == kind]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)] for path in paths]


def test_a_run(tmp_path: Path) -> None:
    done = draw(str(make_run(tmp_path / "run", [0.5, 0.75])), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    root, texts = read(tmp_path / "out" / "curve.svg")
    assert {"Loss (nats)", "Held-out accuracy (%)", "training 1", "held-out 1.5", "held-out 75"} <= set(texts)
    (losses,) = points(root, "line")
    assert len(losses) == 10
    falls = [after[1] - before[1] for before, after in itertools.pairwise(losses)]
    assert all(abs(fall - falls[0]) < 0.11 and fall > 0 for fall in falls)  # a straight line; 0.1 is the last digit
    (_, accuracy) = points(root, "points")
    assert accuracy[0][1] > accuracy[1][1], "up is more"
    assert abs(losses[-1][0] - losses[0][0] - 1.8 * (accuracy[1][0] - accuracy[0][0])) < 0.3  # 90 steps and 50
    matrix, texts = read(tmp_path / "out" / "confusion.svg")
    assert [text for text in texts if text.isdigit()] == ["3", "1", "0", "4"]
    assert texts.count("a<b") == 2
    shades = [float(node.get("fill-opacity", 0)) for node in matrix.iter(f"{SVG}rect")][1:]
    assert shades[3] == max(shades) == 1  # all of its class
    assert shades[0] > shades[1] > shades[2]


def test_several_runs_share_a_chart(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "one", [0.5, 0.75]), make_run(tmp_path / "two", [0.25])
    done = draw(f"from scratch={first}", str(second), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    root, texts = read(tmp_path / "out" / "curve.svg")
    assert {"Training loss (nats)", "from scratch 75", "two 25", "from scratch 1", "two 1"} <= set(texts)
    assert len(points(root, "points")) == 2
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["confusion_from_scratch.svg", "confusion_two.svg", "curve.svg"]


def test_labels_do_not_cover_each_other(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / f"run{n}", [0.5, 0.5])) for n in range(4)]
    assert draw(*runs, "--out", str(tmp_path)).returncode == 0
    root, _ = read(tmp_path / "curve.svg")
    heights = [float(node.get("y", 0)) for node in root.iter(f"{SVG}text") if (node.text or "").endswith(" 50")]
    assert len(heights) == 4
    assert min(abs(a - b) for n, a in enumerate(heights) for b in heights[:n]) >= 12, "the size of a line"


@pytest.mark.parametrize("rows", ["", '{"step": 1, "text": 2}\n'])
def test_a_folder_without_metrics_is_named(tmp_path: Path, rows: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(rows)
    done = draw(str(tmp_path), "--out", str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
