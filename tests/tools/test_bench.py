"""The bench runs, and its row learns what the peers learn from the same weights and tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from speed.page import page
from speed.rows import Row, Setting
from speed.sweeps import points_of
from speed.tables import NOT_MEASURED, derived, markdown, terminal

from helpers import ROOT

ENVIRONMENT = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
PEER = """import json, sys
sizes = {"params": 136960, "tokens_per_step": 256, "to_first_step_s": 1.0, "warm_losses": [6.0], "versions": {}}
print(json.dumps({"ready": True, **sizes}), flush=True)
for line in sys.stdin:
    if line.strip() == "end":
        break
    sum(range(3_000_000))
    print(json.dumps({"chunk_s": 0.5}), flush=True)
print(json.dumps({**sizes, "last_loss": 5.0, "peak_rss_mb": 100}), flush=True)
"""


def bench(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "--config", "T", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess, Path]:
    """lmkit, one row of it that cannot be, and a peer that does nothing."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "peer.py").write_text(PEER)
    rows = ["--lmkit", "lmkit=", "--lmkit", "wrong=model.num_heads=3", "--peer", "idle=python peer.py"]
    more = ["--profile", str(folder / "traces"), "--peer-dir", str(folder), "--out", str(folder)]
    return bench("--rounds", "2", "--steps", "2", *rows, *more), folder


@pytest.mark.slow
def test_it_prints_a_table_and_keeps_a_record(run) -> None:
    done, folder = run
    assert done.returncode == 0, done.stderr
    assert "CPU s/step" in done.stdout
    row, wrong, peer = (json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines())
    assert row["tokens_per_sec"] > 0
    # PyTorch 2.13, nanoGPT-style, the same weights and tokens: 6.26532 (fused AdamW, one thread)
    assert abs(row["first_loss"] - 6.26532) < 2e-5
    assert row["last_loss"] < row["first_loss"]
    assert "num_heads=3" in wrong["error"]
    assert peer["ratio"] == 1
    assert row["ratio"] == pytest.approx(row["cpu_s"] / peer["cpu_s"])
    assert peer["flops_per_step"] == row["flops_per_step"], "the same model"
    assert row["flops_floor_s"] == pytest.approx(row["flops_per_step"] / row["matmul_flops"])
    (rate,) = (json.loads(line) for line in (folder / "rates.jsonl").read_text().splitlines())
    assert rate["run"] == row["run"]
    assert rate["flops_per_cpu_sec"] == row["matmul_flops"]


def test_it_profiles(run) -> None:
    done, folder = run
    assert list((folder / "traces" / "lmkit").rglob("*.xplane.pb"))
    shown = done.stdout.split("the most expensive ops")[1].splitlines()[2:12]
    shares = [float(line.split("%")[0]) for line in shown]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.5
    assert any("dot_general" in line for line in shown)


def test_it_draws_a_page(run) -> None:
    _, folder = run
    text = (folder / "report.html").read_text()
    assert "http" not in text.replace("http://www.w3.org", "")
    svg = text[text.index('<svg role="img" aria-label="Roofline"') : text.index("</svg>") + 6]
    circles = list(ElementTree.fromstring(svg).iter("circle"))
    assert len(circles) == 2, "the row that failed has no context"
    assert "num_heads=3" in text


def row_of(name: str, **more) -> dict:
    figures = {
        "tokens_per_sec": 10.0,
        "tokens_per_sec_min": 9.0,
        "tokens_per_sec_max": 11.0,
        "step_s": 3.0,
        "cpu_s": 2.0,
    }
    figures |= {"cpu_s_min": 1.9, "cpu_s_max": 2.1, "to_first_step_s": 5.0, "peak_rss_mb": 100, "last_loss": 1.0}
    context = {"config": "S", "dtype": "fp32", "threads": 1, "when": "2026-11-22", "machine": "a<b"}
    return (
        {"name": name, "kind": "lmkit", "params": 7, "tokens_per_step": 20, "first_loss": 2.0}
        | figures
        | context
        | more
    )


def test_time_is_cpu_seconds_on_a_cpu_and_seconds_elsewhere() -> None:
    work = {"flops_per_step": 8e9, "bytes_per_step": 1e9}
    rates = {"flops_per_sec": 1e10, "flops_per_cpu_sec": 5e9, "bytes_per_sec": 2e9}
    cpu, gpu = (derived([row_of("a", **work)], [rates | {"platform": one}])[0] for one in ("cpu", "gpu"))
    assert (cpu["flops_floor_s"], cpu["bytes_floor_s"], cpu["mfu"]) == (1.6, 0.5, 0.8)
    assert (gpu["flops_floor_s"], gpu["bytes_floor_s"], gpu["gap"]) == (0.8, 0.5, 3 / 0.8)


def test_what_was_not_measured_is_said() -> None:
    rows = derived([row_of("a"), {"name": "b", "error": "out of memory"}], [])
    assert "out of memory" in terminal(rows)
    first, second = markdown(rows).splitlines()[2:]
    assert first.count(NOT_MEASURED) == 5  # MFU, warm start, both floors, gap
    assert second.startswith("| b | out of memory |")
    assert "a&lt;b" in page([row_of("a")])


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("raise MemoryError('the step needs 9 GiB')", "out of memory"),
        ("import os; os.kill(os.getpid(), 9)", "out of memory"),
        ("raise ValueError('never')", "status 1: ValueError: never"),
        ("import time; time.sleep(60)", "over 1 s"),
    ],
)
def test_a_row_that_fails_says_why(tmp_path: Path, says: str, reason: str) -> None:
    row = Row("x", [sys.executable, "-c", says], tmp_path, Setting("T", limit_sec=1.0 if "sleep" in says else 60.0))
    row.chunk(2)
    assert row.result() == {"name": "x", "error": reason}


def test_a_step_below_a_tick_takes_time(tmp_path: Path) -> None:
    row = Row("x", [sys.executable, "-c", PEER.replace("3_000_000", "30_000")], tmp_path, Setting("T")).ready()
    for _ in range(3):
        row.chunk(1)
    assert 0 < row.result()["cpu_s_min"] < 0.01


def test_sweeps_have_their_points() -> None:
    points = points_of("model.remat=none,full", "S", "fp32", 0)
    assert [(one.name, one.keys) for one in points] == [
        ("model.remat=none", ["model.remat=none"]), ("model.remat=full", ["model.remat=full"]),
    ]  # fmt: skip
    (one,) = points_of("optim.decay=[matrix,embedding]", "S", "fp32", 0)
    assert one.keys == ["optim.decay=[matrix,embedding]"]
    lengths = [one.keys for one in points_of("sequence", "S", "fp32", 4096)]
    assert lengths[0] == ["data.seq_len=512", "train.batch_size=8"]
    assert lengths[-1] == ["data.seq_len=4096", "train.batch_size=1"]
    assert [one.config for one in points_of("model", "S", "fp32", 0)] == ["S", "G124", "350M", "G1B3"]
    assert points_of("batch", "S", "fp32", 0)[0].keys == ["train.batch_size=4"]
    for wrong in ("remta", "config=XL", "heads=3"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            points_of(wrong, "S", "fp32", 0)


@pytest.mark.slow
def test_a_sweep_loses_no_point_to_another(tmp_path: Path) -> None:
    done = bench("--rounds", "1", "--steps", "1", "--sweep", "attention", "--sweep", "scan", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines())}
    assert "NVIDIA GPU" in rows["attention cudnn"]["error"]
    losses = [rows[name]["last_loss"] for name in ("attention xla", "scanned", "unrolled")]
    assert max(losses) - min(losses) < 1e-4
