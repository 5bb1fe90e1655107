"""The bench runs, and its row learns what the peers learn from the same weights and tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import ROOT


def test_bench_prints_a_table_and_keeps_a_record(tmp_path: Path) -> None:
    out, environment = tmp_path / "rows.jsonl", {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "--config", "T", "--rounds", "1", "--steps", "2"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "CPU s/step" in done.stdout
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["tokens_per_sec"] > 0
    # PyTorch 2.13, nanoGPT-style, the same weights and tokens: 6.26532 (fused AdamW, one thread)
    assert abs(row["first_loss"] - 6.26532) < 2e-5
    assert row["last_loss"] < row["first_loss"]
