"""Whole runs as many real processes: the same losses, one record, and one end. gloo carries the arrays."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lmkit.config.entry import run_verb
from lmkit.config.sections.hosts import LOST
from lmkit.tracker import read_rows

TIMES = ["hosts.start_timeout_sec=120", "hosts.heartbeat_timeout_sec=10", "hosts.shutdown_timeout_sec=5"]
TEXT = [
    "+experiment=gpt_tiny", "data=text_files", "model.embed_dim=32", "model.num_heads=2", "data.seq_len=32",
    "train.sample_tokens=0", "tracker=none", "mesh.data=1", "mesh.fsdp=-1",
]  # fmt: skip


def words_of(corpus: Path, run: Path, *more: str) -> list[str]:
    return [*TEXT, *TIMES, f"data.paths=[{corpus}]", f"run.dir={run}", *more]


def alone(*words: str) -> int:
    """In this process, on its eight devices."""
    return run_verb("train", "lmkit.train.main:train", "about", list(words))


def start(*words: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-m", "lmkit.train", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def together(*words: str, timeout: float = 300) -> tuple[int, str, str]:
    """hosts.local= among the words: (status, stdout, stderr)."""
    process = start(*words)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def by_hand(num: int, *words: str) -> list[subprocess.Popen]:
    """As on many machines: each with its number."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    many = [f"hosts.coordinator={address}", f"hosts.num={num}"]
    return [start(*words, *many, f"hosts.id={number}") for number in range(num)]


def wait_for_steps(run: Path, number: int, *processes: subprocess.Popen) -> None:
    began = time.monotonic()
    while len(read_rows(run / "metrics.jsonl")) < number:
        assert time.monotonic() - began < 240
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)


def losses(run: Path, name: str = "train/loss") -> dict[int, float]:
    return {row["step"]: row[name] for row in read_rows(run / "metrics.jsonl") if name in row}


def same_losses(one: Path, two: Path, rtol: float) -> None:
    """Other samples would differ in the first digit; the same ones differ in the order of float32 sums."""
    for name in ("train/loss", "eval/loss"):
        a, b = losses(one, name), losses(two, name)
        assert list(a) == list(b)
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=rtol)


def test_two_processes_equal_one_and_leave_one_record(corpus: Path, tmp_path: Path) -> None:
    short = ["train.steps=4", "train.eval_every_steps=2", "train.eval_batches=1", "optim.warmup_steps=2"]
    short += ["model.num_layers=1", "checkpoint.save_every_steps=0"]
    assert alone(*words_of(corpus, tmp_path / "one", *short)) == 0
    status, out, err = together(*words_of(corpus, tmp_path / "two", *short, "hosts.local=2"))
    assert status == 0, err
    same_losses(tmp_path / "one", tmp_path / "two", 1e-5)
    rows = read_rows(tmp_path / "two" / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval/loss" in row] == [2, 4]
    assert "4 x cpu on 2 hosts" in out
    assert out.count("step 4/4") == 1
    assert "step 4/4" not in err
    receipt = json.loads((tmp_path / "two" / "receipt.json").read_text())
    assert (receipt["devices"]["hosts"], receipt["mesh"]["fsdp"]) == (2, 4)
    names = {p.name for p in (tmp_path / "two").iterdir()}
    assert {p.name for p in (tmp_path / "one").iterdir()} == names
    saved = tmp_path / "two" / "checkpoints" / "4"
    manifests = [json.loads((saved / name).read_text()) for name in ("lmkit_manifest.json", "lmkit_manifest.1.json")]
    assert len(manifests[0] | manifests[1]) == sum(map(len, manifests))
    assert len(manifests[0] | manifests[1]) == len([p for p in saved.rglob("*") if p.is_file()]) - 2
    sizes = [sum(size for size, _ in manifest.values()) for manifest in manifests]
    assert all("process_1" in name for name in manifests[1])
    assert min(sizes) > 0.4 * sum(sizes), "each has read its half"


@pytest.mark.slow
def test_four_go_on_from_one_past_a_bad_checkpoint(corpus: Path, tmp_path: Path) -> None:
    """1 -> 4: the same samples; a flipped bit is noticed although each process reads a part of the files only."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ["train.steps=24", "checkpoint.save_every_steps=8", "train.eval_every_steps=8", "checkpoint.keep_last=3"]
    assert alone(*words_of(corpus, whole, *words)) == 0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "24")
    files = [p for p in (parts / "checkpoints" / "16").rglob("*") if p.is_file() and "manifest" not in p.name]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    status, out, err = together(*words_of(corpus, parts, *words, "hosts.local=4"))
    assert status == 0, err
    assert "checkpoint 16 is not used" in out
    assert "resumed at step 8" in out
    assert "8 x cpu on 4 hosts" in out
    same_losses(whole, parts, 1e-4)
    assert [p.name.split("-")[0] for p in (parts / "checkpoints_bad").iterdir()] == ["16"]


@pytest.mark.slow
def test_sigterm_saves_on_all_and_one_process_goes_on(corpus: Path, tmp_path: Path) -> None:
    """2 -> 1: status 75, the same step saved by both, the same losses as a run that was left alone."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ["train.steps=60", "train.eval_every_steps=0", "train.eval_batches=2", "checkpoint.save_every_steps=0"]
    assert alone(*words_of(corpus, whole, *words)) == 0
    process = start(*words_of(corpus, parts, *words, "hosts.local=2"))
    wait_for_steps(parts, 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "saved; resume with" in out
    assert "hosts.local=2" in out
    (saved,) = [int(p.name) for p in (parts / "checkpoints").iterdir()]
    assert 3 <= saved < 60
    assert json.loads((parts / "summary.json").read_text())["steps"] == saved
    assert alone(*words_of(corpus, parts, *words)) == 0
    same_losses(whole, parts, 1e-3)  # after up to 60 steps sums in another order have grown


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_goes_on(corpus: Path, tmp_path: Path, who: int) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    words = ["train.steps=40", "train.eval_every_steps=0", "train.eval_batches=2", "checkpoint.save_every_steps=4"]
    assert alone(*words_of(corpus, whole, *words)) == 0
    processes = by_hand(2, *words_of(corpus, run, *words))
    wait_for_steps(run, 9, *processes)
    processes[who].kill()
    began = time.monotonic()
    _, err = processes[1 - who].communicate(timeout=60)
    assert time.monotonic() - began < 10 + 5 + 3  # hosts.heartbeat_timeout_sec, shutdown_timeout_sec; 0.3 s was found
    assert processes[1 - who].returncode == LOST, err
    assert re.search(rf"lmkit.train: process {who} \(.*pid {processes[who].pid}\) was lost", err), err
    assert "Traceback" not in err
    status, out, err = together(*words_of(corpus, run, *words, "hosts.local=2"))
    assert status == 0, err
    assert "resumed at step" in out
    same_losses(whole, run, 1e-4)


@pytest.mark.slow
def test_a_run_in_use_or_not_shared_ends_all_with_one_line(corpus: Path, tmp_path: Path) -> None:
    import fcntl

    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, err = together(*words_of(corpus, run, "hosts.local=2"))
    assert status == 2
    assert [line for line in err.splitlines() if "lmkit.train: " in line] == [
        f"lmkit.train: run.dir={run} is in use by another process; stop it or choose another"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["objective=classify", "data=records", "model=bert", "model.lm_head=false", "model.vocab_size=264", "mesh.fsdp=-1"],
    ["objective=seq2seq", "data=records", "model=encdec", "model.norm_order=pre", "model.vocab_size=304",
     "data.target_len=8", "mesh.fsdp=2", "mesh.tensor=-1"],
    ["objective=classify", "data=records", "model=bert", "model.lm_head=false", "model.vocab_size=264",
     "mesh.fsdp=-1", "train.folds=2", "data.holdout_every=2"],
], ids=["classes", "texts", "folds"])  # fmt: skip
def test_other_evaluations_equal_those_of_one_process(words: list[str], tmp_path: Path) -> None:
    """Predictions are gathered from all, texts are written by all, folds follow each other; a sample needs a cache."""
    colours = ["red", "green", "blue"]
    rows = [{"text": f"{colours[n % 3]} {n}", "label": colours[n % 3], "target": colours[n % 3]} for n in range(64)]
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = [
        "run.name=tiny", f"data.paths=[{records}]", "tokenizer=bytes", "model.num_layers=1", "model.num_heads=4",
        "model.embed_dim=32", "model.max_seq_len=64", "train.steps=6", "train.batch_size=8", "train.eval_every_steps=3",
        "train.log_every_steps=1", "optim.warmup_steps=2", "optim.learning_rate=0.01", "tracker=none",
        "data.seq_len=32", "data.holdout_every=4", "mesh.data=1", *TIMES,
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    assert alone(*common, *words, f"run.dir={one}") == 0
    status, _, err = together(*common, *words, f"run.dir={two}", "hosts.local=2")
    assert status == 0, err
    a, b = (json.loads((run / "summary.json").read_text()) for run in (one, two))
    figures = [name for name in a if name.startswith("eval/")]
    assert figures
    np.testing.assert_allclose([a[name] for name in figures], [b[name] for name in figures], rtol=1e-4, atol=1e-4)
