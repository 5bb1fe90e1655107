"""Floors, goals, the documents' tables and the tools around the bench."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import bench_docs
import bench_wheels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from speed.floors import Limits, floors_of
from speed.goals import GOALS, goal_table
from speed.model import experiment_of
from speed.profile import Event, expensive_ops, op_names, own_seconds
from speed.records import keep, newest, records
from speed.tables import NOT_MEASURED

from helpers import ROOT

ENVIRONMENT = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}


def tool(name: str, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=ENVIRONMENT)


def kept(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{kind}.jsonl").read_text().splitlines()]


def test_the_page_has_what_the_records_say() -> None:
    """Mend it with python tools/bench_docs.py."""
    page = bench_docs.PAGE.read_text()
    assert page == bench_docs.render(page)
    assert page.count("<!-- tools/bench_docs.py:") == 7


@pytest.mark.slow
def test_a_new_record_changes_the_page(tmp_path: Path) -> None:
    page = bench_docs.PAGE.read_text()
    empty = bench_docs.render(page, tmp_path)
    assert empty.count(f"| {NOT_MEASURED} | |") == len(GOALS)
    facts = {"name": "gpt3_1b3", "platform": "gpu", "device": "a GPU", "when": "2026-12-24", "run": "1"}
    facts |= {"figures": {"x": 5.0}}
    keep(tmp_path, "decode", facts | {"batch": 64, "share": 0.734})
    keep(tmp_path, "decode", facts | {"batch": 1, "share": 0.1, "rehearsed": True})
    found = bench_docs.render(page, tmp_path)
    changed = [line for line in found.splitlines() if line not in empty.splitlines()]
    assert "| H200, gpt3_1b3 | decode, batch 64, share of the bandwidth limit | ≥ 60% | 73% | met |" in changed
    assert len(changed) == 2, "a rehearsal counts for nothing"


def test_goals_take_the_newest_run_and_the_faster_peer() -> None:
    def row(run: str, kind: str, cpu_s: float, **more) -> dict:
        return {"config": "S", "dtype": "fp32", "when": "2026", "run": run, "kind": kind, "cpu_s": cpu_s} | more

    old = [row("1", "lmkit", 9.0), row("1", "peer", 1.0)]
    new = [row("2", "lmkit", 3.0), row("2", "lmkit", 2.4), row("2", "peer", 4.0), row("2", "peer", 5.0)]
    sweep = [row("3", "lmkit", 0.1, sweep="remat"), row("3", "lmkit", 0.1, asked_batch=2)]
    failed = [row("2", "lmkit", 0.0, error="out of memory")]
    (goal,) = [goal for goal in GOALS if goal.where == "CPU fp32, S" and goal.what.startswith("CPU s/step")]
    assert goal.figure({"train": [*old, *new, *failed, *sweep]}) == pytest.approx(0.6)
    assert "| 0.60 | met |" in goal.line({"train": [*old, *new]})
    assert "| 9.00 | not met |" in goal_table({"train": old})
    assert goal.figure({"train": new[:2]}) is None, "without a peer there is no ratio"
    each = [one | {"machine": "2 x Intel(R) Xeon(R) Processor"} for one in old]
    each += [one | {"machine": "4 x AMD EPYC"} for one in new]
    assert "| 9.00 (Intel Xeon); 0.60 (AMD EPYC) | met on one |" in goal.line({"train": each})


def test_floors() -> None:
    floors = floors_of(experiment_of("S", "fp32", []))
    # the peers count 6 N + 12 L D T a token; of causal attention, half is seen
    params, layers, width, seq, tokens = 13_891_584 - 256 * 384, 6, 384, 256, 4096
    vectors = 13 * width * layers + 2 * width - 4 * width * layers  # norms and biases, which are in no product
    assert floors.flops == pytest.approx(tokens * (6 * (params - vectors) + 6 * layers * width * seq), rel=2e-3)
    # at the least the state goes through once: parameters and two moments, read and written
    assert floors.num_bytes > 2 * 12 * 13_891_584
    more = floors_of(experiment_of("S", "fp32", ["model.remat=full"]))
    assert (more.flops, more.repeated > floors.repeated) == (floors.flops, True)
    limits = Limits(1e12, 1e10)
    assert limits.seconds(floors) == (floors.flops / 1e12, floors.num_bytes / 1e10)
    assert (limits.attainable(10), limits.attainable(1000)) == (1e11, 1e12)


def test_an_op_has_the_time_that_no_op_inside_it_has() -> None:
    inside = [Event("dot", 10, 30), Event("add", 40, 20), Event("copy", 50, 5)]
    line = [Event("while", 0, 100), *inside, Event("dot", 200, 7)]
    own = [(event.name, round(seconds * 1e9)) for event, seconds in own_seconds(line)]
    assert own == [("while", 50), ("dot", 30), ("add", 15), ("copy", 5), ("dot", 7)]


def test_the_dearest_op_of_a_trace(tmp_path: Path) -> None:
    program = jax.jit(lambda x: jnp.sum(jnp.sort(x, axis=0)) + jnp.sum(x + 1)).lower(jnp.ones((300, 300))).compile()
    x = jnp.asarray(np.random.default_rng(0).random((300, 300), np.float32))
    with jax.profiler.trace(str(tmp_path)):
        program(x).block_until_ready()
    ops = expensive_ops(tmp_path, op_names(program.as_text()))
    assert "sort" in ops[0]["op"]
    assert "sort" in ops[0]["what"]
    assert ops[0]["share"] > 0.5
    assert sum(op["share"] for op in ops) <= 1.000001
    with pytest.raises(ValueError, match="no ops"):
        expensive_ops(tmp_path / "nowhere", {})


def test_records(tmp_path: Path) -> None:
    assert records(tmp_path, "x") == []
    for number, name in enumerate("aba"):
        keep(tmp_path, "x", {"name": name, "number": number})
    assert newest(records(tmp_path, "x"), "name") == [{"name": "a", "number": 2}, {"name": "b", "number": 1}]


def test_wheels_of_what_is_missing_are_unpacked(tmp_path: Path) -> None:
    for name in ("never_heard_of_it-1.0", "numpy-0.1", "hydra_core-0.9"):
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name.split('-')[0]}.py", "x = 1")
    site = tmp_path / "site"
    assert bench_wheels.unpack(tmp_path, site) == ["never_heard_of_it-1.0-py3-none-any.whl"]
    assert [path.name for path in site.iterdir()] == ["never_heard_of_it.py"]
    names = {line.partition("==")[0] for line in bench_wheels.versions()}
    assert {"hydra-core", "omegaconf", "antlr4-python3-runtime", "grain"} <= names


@pytest.mark.slow
def test_what_the_loop_spends_beside_steps(tmp_path: Path) -> None:
    keys = ["model.num_layers=2", "model.embed_dim=64", "model.num_heads=2", "model.vocab_size=512"]
    words = ["--steps", "12", "--every", "5", "--words", "300", "--rehearse", "--out", str(tmp_path), "--keys", *keys]
    done = tool("bench_idle", *words)
    assert done.returncode == 0, done.stderr
    (row,) = kept(tmp_path, "idle")
    assert row["saves"] == 2
    assert row["steps"] == 12
    assert 0 < row["input_share"] < 1
    assert 0 < row["logging_share"] < 1
    assert row["save_blocks_s"] <= row["save_blocks_most_s"]
    assert "waiting for input" in done.stdout


def test_decoding_beside_the_bandwidth(tmp_path: Path) -> None:
    shape = ["--config", "T", "--dtype", "bf16", "--batch", "1", "4", "--prompt", "16", "--new", "8"]
    done = tool("bench_decode", *shape, "--rounds", "1", "--copied", "4000000", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    one, four = kept(tmp_path, "decode")
    assert (
        one["parameters_gb"] == four["parameters_gb"] == pytest.approx(2 * (136_960 - 64 * 64) / 1e9)
    )  # without the positions
    assert four["cache_gb"] == pytest.approx(4 * one["cache_gb"])
    assert one["cache_gb"] == pytest.approx(2 * 2 * 20 * 64 * 2 / 1e9)  # k and v, 2 layers, 20 tokens, bfloat16
    assert four["share"] == pytest.approx(four["tokens_per_sec"] / four["limit_tokens_per_sec"])


@pytest.mark.slow
def test_the_check_fails_where_a_number_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_check

    (case,) = [one for one in bench_check.cases() if one.name == "bfloat16, xla, packed"]
    device = jax.devices()[0]
    assert bench_check.compare(case, device)["over_tolerance"] < 1
    bare = bench_check.batch_of(True)
    monkeypatch.setattr(bench_check, "batch_of", lambda _: {k: v for k, v in bare.items() if k != "segment_ids"})
    assert bench_check.compare(case, device)["over_tolerance"] > 1, "a kernel that sees other documents"
    assert bench_check.compare_text("highest", device)["over_tolerance"] < 1


@pytest.mark.slow
def test_compile_time(tmp_path: Path) -> None:
    words = ["--config", "T", "--layers", "2", "4", "--rounds", "1", "--batch", "4", "--out", str(tmp_path)]
    done = tool("bench_compile", *words)
    assert done.returncode == 0, done.stderr
    (row,) = kept(tmp_path, "compile")
    assert row["rehearsed"]
    assert 0.5 < row["growth"] < 2, "scanned"
    assert row["warm_s"] < row["cold_s"]


@pytest.mark.slow
def test_the_command_for_a_gpu_rehearses_on_a_cpu(tmp_path: Path) -> None:
    done = tool("bench_gpu", "--rehearse", "--out", str(tmp_path), "--budget", "480")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = (tmp_path / "summary.md").read_text()
    assert summary.count(": done after") == 8
    assert summary.count(f"| {NOT_MEASURED} | |") == len(GOALS), "a rehearsal counts for nothing"
    rows = kept(tmp_path, "train")
    assert [row["sweep"] for row in rows] == ["", "", "profile", "variants"]
    assert len({row["run"] for row in rows}) == 1
    assert len({row["matmul_flops"] for row in rows}) == 1, "rates are those of this run"
    assert all(kept(tmp_path, kind) for kind in ("check", "decode", "idle", "rates"))


def test_a_budget_that_is_spent_is_said(tmp_path: Path) -> None:
    done = tool("bench_gpu", "--rehearse", "--out", str(tmp_path), "--budget", "1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "summary.md").read_text().count("no time left") == 8
