"""The weak scaling tool: each size on its own fake devices, with a batch that grows, measured against one device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT


@pytest.mark.slow
def test_growth_is_what_comes_on_top_of_the_ideal(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(ROOT / "tools" / "bench_scaling.py"), "--config", "T", "--rounds", "1"]
    command += ["--steps", "40", "--devices", "1", "2", "--rows", "4", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "over ideal" in done.stdout
    one, two = (json.loads(line) for line in out.read_text().splitlines())
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["growth"] == 0
    assert two["growth"] == pytest.approx(two["cpu_s"] / (2 * one["cpu_s"]) - 1)
    per_step = [row["tokens_per_sec"] > 0 and row["params"] for row in (one, two)]
    assert per_step[0] == per_step[1]  # the same model
    assert abs(one["first_loss"] - 6.26532) < 2e-5  # as tools/bench.py has it: the same weights and tokens
    assert two["first_loss"] != one["first_loss"]  # a larger batch


def test_the_first_size_is_one() -> None:
    command = [sys.executable, str(ROOT / "tools" / "bench_scaling.py"), "--devices", "2", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "must begin with 1" in done.stderr
