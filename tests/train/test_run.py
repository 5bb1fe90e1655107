"""Whole runs: what they leave, how they stop, how they go on, and what bad input gets."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
import yaml

from lmkit.checkpoint import load_params
from lmkit.config import ConfigError
from lmkit.config.entry import compose, run_verb
from lmkit.config.saved import read_model
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.optim import OptimConfig
from lmkit.core.state import make_blueprint
from lmkit.interop import save_folder
from lmkit.parallel.mesh import build_mesh
from lmkit.tracker import read_rows
from lmkit.train import evaluator

# One document in 300 is held out: at the end of a run all of that is evaluated.
SMALL = ["+experiment=gpt_tiny", "data.holdout_every=300"]
TINY = [*SMALL, "tracker=none", "train.sample_tokens=0", "train.eval_batches=1"]


@pytest.fixture(autouse=True)
def _optimised() -> Iterator[None]:
    """Programs that run for hundreds of steps are worth the compiler's time."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def train(*overrides: str) -> int:
    return run_verb("train", "lmkit.train.main:train", "about", [*TINY, *overrides])


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "lmkit.train", *TINY, *overrides]


def environment() -> dict[str, str]:
    return {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in read_rows(run / "metrics.jsonl") if "train/loss" in row}


def checkpoint_digest(run: Path, step: int) -> list:
    """Every array of a checkpoint, as numbers."""
    state = ocp.load(run / "checkpoints" / str(step))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def same_run(one: Path, two: Path, step: int) -> None:
    assert losses(one) == losses(two)
    for a, b in zip(checkpoint_digest(one, step), checkpoint_digest(two, step), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_last_step_is_saved_before_its_bounded_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits, heldout, evaluate = [], evaluator.heldout_batches, evaluator.evaluate

    def counted(*args, limit: int, **options):
        limits.append(limit)
        return heldout(*args, limit=limit, **options)

    def breaks(*args):
        if len(limits) == 2:
            raise MemoryError("the evaluation")
        return evaluate(*args)

    monkeypatch.setattr(evaluator, "heldout_batches", counted)
    monkeypatch.setattr(evaluator, "evaluate", breaks)
    short = [
        "train.steps=2",
        "optim.warmup_steps=0",
        "train.eval_every_steps=1",
        "train.last_eval_batches=-1",
        "checkpoint.keep_best=1",
    ]
    assert train(f"run.dir={tmp_path / 'run'}", *short, "checkpoint.save_every_steps=0") == 1
    assert limits == [1, 1]
    assert (tmp_path / "run" / "checkpoints" / "2" / "lmkit_manifest.json").is_file()


def test_a_run_leaves_everything(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    word = "hunter" * 2  # not as it would stand in a diff of this file
    secret = f'launch.setup=["export HF_TOKEN={word}"]'
    status = run_verb("train", "lmkit.train.main:train", "about", [*SMALL, f"run.dir={run}", "mesh.fsdp=2", secret])
    assert status == 0
    for path in run.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert path.is_dir() or word.encode() not in path.read_bytes(), path
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    out = capsys.readouterr().out
    for word in (
        "devices",
        "8 x cpu",
        "mesh",
        "data=4 x fsdp=2",
        "parameters",
        "132,480",
        "memory",
        "time",
        "held out",
        "report.html",
    ):
        assert word in out, word
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["embed_dim"] == 64
    receipt = json.loads((run / "receipt.json").read_text())
    assert receipt["mesh"]["fsdp"] == 2
    assert receipt["model"]["params"] == 132_480
    assert receipt["expected"]["memory_bytes"] > receipt["expected"]["state_bytes"] > 0
    assert len(receipt["data"]["text"]["text_sha256"]) == 64
    assert {"jax", "flax", "lmkit"} <= set(receipt["versions"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["steps"], summary["tokens"]) == (40, 40 * 8 * 64)
    for name in ("train/loss", "eval/loss", "eval/bits_per_byte", "wall_sec", "tokens_per_sec"):
        assert summary[name] > 0
    # bytes, so bits per byte is nats / ln 2, but for the ends of documents
    assert summary["eval/bits_per_byte"] == pytest.approx(summary["eval/loss"] / np.log(2), rel=1e-3)
    assert summary["eval/loss"] < 3.6
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 41))
    assert [row["step"] for row in rows if "eval/loss" in row] == [20, 40]
    assert len(read_rows(run / "samples.jsonl")) == 2
    assert list((run / "tensorboard").iterdir())
    assert (run / "report.html").stat().st_size > 5000
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["20", "40"]
    assert read_model(run).embed_dim == 64  # type: ignore[attr-defined]
    assert (run / "tokenizer.json").is_file()


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    """20 + 20 steps and 40 steps: equal losses, parameters and optimiser state; then nothing is left to do."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(f"run.dir={whole}") == 0
    assert train(f"run.dir={parts}", "train.steps=40") == 0
    for later in ("40",):  # lose the second half
        import shutil

        shutil.rmtree(parts / "checkpoints" / later)
    assert train(f"run.dir={parts}") == 0
    same_run(whole, parts, 40)
    history = json.loads((parts / "receipt.json").read_text())["history"]
    assert [session["step"] for session in history] == [0, 20]
    kept = {name: json.loads((parts / f"{name}.json").read_text()) for name in ("summary", "receipt")}
    assert train(f"run.dir={parts}") == 0
    again = {name: json.loads((parts / f"{name}.json").read_text()) for name in ("summary", "receipt")}
    assert again["summary"] == kept["summary"]  # a record is not replaced by an emptier one
    assert kept["receipt"]["measured"]["step_sec"] > 0
    assert [session["step"] for session in again["receipt"].pop("history")] == [0, 20, 40]
    del kept["receipt"]["history"]
    assert again["receipt"] == kept["receipt"]
    same_run(whole, parts, 40)


@pytest.mark.parametrize("axis", ["data", pytest.param("stage", marks=pytest.mark.slow)])
def test_resumed_on_another_mesh_sees_the_same_samples(axis: str, tmp_path: Path) -> None:
    import shutil

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(f"run.dir={whole}", "train.steps=26") == 0
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "26")
    assert (
        train(f"run.dir={parts}", "train.steps=26", "mesh.data=1", f"mesh.{axis}=2", "mesh.fsdp=2", "mesh.tensor=2")
        == 0
    )
    receipt = json.loads((parts / "receipt.json").read_text())
    assert bool(receipt["pipeline"]) == (axis == "stage")
    one, two = losses(whole), losses(parts)
    assert list(one) == list(two) == list(range(1, 27))
    # other samples would differ in the first digit; the same ones differ in the order of float32 sums
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-4)


@pytest.mark.slow
def test_sigkill_at_random_moments_ten_times(tmp_path: Path) -> None:
    """A run killed ten times at random ends with the same bits as one left alone."""
    steps = ["train.steps=300", "checkpoint.save_every_steps=6", "train.eval_every_steps=0", "checkpoint.keep_last=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(f"run.dir={whole}", *steps), env=environment(), check=True, capture_output=True)
    rng, kills, log = random.Random(0), 0, killed / "metrics.jsonl"
    while kills < 10:
        process = subprocess.Popen(
            command(f"run.dir={killed}", *steps), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        before, start = log.stat().st_size if log.exists() else 0, time.monotonic()
        while process.poll() is None and time.monotonic() - start < 60:  # until it trains
            if log.exists() and log.stat().st_size > before + 200:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.1))
        if process.poll() is None:
            process.kill()
            kills += 1
        assert process.wait() in (0, -signal.SIGKILL), process.stderr.read().decode()  # type: ignore[union-attr]
        if process.returncode == 0:
            break
    assert kills >= 5, f"the run ended after {kills} kills: it is too short for this machine"
    subprocess.run(command(f"run.dir={killed}", *steps), env=environment(), check=True, capture_output=True)
    same_run(whole, killed, 300)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_saves_and_says_how_to_resume(tmp_path: Path, number: signal.Signals, status: int) -> None:
    run = tmp_path / "run"
    words = command(f"run.dir={run}", "train.steps=100000", "train.eval_every_steps=0")
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    start = time.monotonic()
    while not losses(run) if (run / "metrics.jsonl").exists() else True:
        assert time.monotonic() - start < 120, process.communicate(timeout=1)
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert f"run.dir={run}" in out.replace("\n", "")
    assert "Traceback" not in err
    (saved,) = [int(p.name) for p in (run / "checkpoints").iterdir()]
    assert json.loads((run / "summary.json").read_text())["steps"] == saved
    assert (run / "report.html").is_file()
    rows = losses(run)
    assert max(rows) <= saved


def test_what_ends_the_process_at_the_first_device_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLA aborts where it does not know a flag."""

    def abort() -> None:
        raise ConfigError("as XLA aborts")

    monkeypatch.setattr("lmkit.train.main.devices_here", abort)
    assert train(f"run.dir={tmp_path / 'run'}") == 2
    assert not (tmp_path / "run").exists()


def test_the_step_compiles_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jax.config.update("jax_log_compiles", True)  # not the context of that name, which is for one thread
    try:
        assert train(f"run.dir={tmp_path / 'run'}", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2") == 0
    finally:
        jax.config.update("jax_log_compiles", False)
    compiled = [r.getMessage().split(" with ")[0] for r in caplog.records if r.getMessage().startswith("Compiling ")]
    assert len([name for name in compiled if "train_step" in name]) == 1, compiled
    assert len([name for name in compiled if "eval_step" in name]) == 1, compiled


def test_init_from_takes_parameters_and_nothing_else(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(f"run.dir={first}") == 0
    assert train(f"run.dir={second}", f"init_from={first}", "train.steps=21") == 0
    assert min(losses(second)) == 1
    assert losses(second)[1] < losses(first)[1] - 1.0


def test_init_from_a_hugging_face_folder_equals_the_run_it_came_from(tmp_path: Path, capsys) -> None:
    """Exported, a run's parameters start another one exactly as the run itself does; another model is refused."""
    form = ["model.gated=true", "train.steps=12"]
    assert train(f"run.dir={tmp_path / 'first'}", *form) == 0
    model = compose(["+experiment=gpt_tiny", *form]).model
    blueprint = make_blueprint(model, OptimConfig(), 12, build_mesh(MeshConfig(), jax.devices()[:1]))
    params, _ = load_params(tmp_path / "first", blueprint.shapes["params"])
    assert save_folder(tmp_path / "folder", model, params) == "qwen3"
    for name in ("first", "folder"):
        run = [f"run.dir={tmp_path / ('from_' + name)}", f"init_from={tmp_path / name}"]
        assert train(*run, *form, "mesh.data=4", "mesh.fsdp=2") == 0
    assert losses(tmp_path / "from_first") == losses(tmp_path / "from_folder")
    capsys.readouterr()
    assert train(f"run.dir={tmp_path / 'other'}", f"init_from={tmp_path / 'folder'}", *form, "model.qk_norm=false") == 2
    assert "there has model.qk_norm=True; this one model.qk_norm=False" in capsys.readouterr().err


@pytest.mark.parametrize(("overrides", "words"), [
    (["train.batch_size=9"], ["train.batch_size=9", "= 8" if False else "8"]),
    (["train.batch_size=16", "train.accumulate_steps=4"], ["accumulate_steps", "8"]),
    (["mesh.data=3"], ["data=3", "8"]),
    (["mesh.data=1", "mesh.tensor=8"], ["model.num_heads=4", "mesh.tensor=8"]),
    (["mesh.data=1", "mesh.tensor=-1"], ["model.num_heads=4", "mesh.tensor=8"]),
    (["mesh.tensor=2", "model.vocab_size=0"], ["embed.table", "257", "256 and 258"]),
    (["model.vocab_size=100"], ["model.vocab_size=100", "257"]),
    (["data=text_files", "data.paths=[nowhere]"], ["nowhere"]),
    (["data.seq_len=100000000"], ["data.seq_len=100000000"]),
    (["tracker.names=[wandbb]"], ["wandbb", "wandb"]),
    (["init_from=nowhere"], ["init_from=", "nowhere"]),
    (["run.dir=s3://bucket/x"], ["s3://bucket/x"]),
    (["run.dir=/proc/nothing"], ["/proc/nothing", "run.dir="]),
    (["tokenizer=file", "tokenizer.path=nowhere.json"], ["nowhere.json"]),
    (["model=bert", "model.qk_norm=false"], ["objective.kind=causal_lm", "BERTConfig", "model=gpt"]),
    (["model.block=nowhere:Block"], ["nowhere:Block", "module:Class"]),
    (["objective.kind=seq2seq"], ["seq2seq", "objective=causal_lm"]),
    (["model.attention=cudnn"], ["model.attention=cudnn", "cpu"]),
    (["data.cache_dir=/proc/nothing"], ["/proc/nothing", "data.cache_dir"]),
])  # fmt: skip
def test_bad_input_gets_one_line_and_status_2(
    tmp_path: Path, overrides: list[str], words: list[str], capsys: pytest.CaptureFixture
) -> None:
    run = [] if any(o.startswith("run.dir") for o in overrides) else [f"run.dir={tmp_path / 'run'}"]
    assert train(*run, *overrides) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("lmkit.train: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0], lines[0]


def test_a_run_of_another_experiment_is_refused_and_untouched(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    assert train(f"run.dir={run}", "train.steps=10") == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert train(f"run.dir={run}", "train.steps=10", "model.num_layers=3", "optim.learning_rate=0.5") == 2
    err = capsys.readouterr().err
    assert "model.num_layers (2 there, 3 here)" in err
    assert "optim.learning_rate" in err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    assert train(f"run.dir={tmp_path / 'full'}") == 2
    assert "not a run" in capsys.readouterr().err


def test_a_run_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import fcntl

    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert train(f"run.dir={run}") == 2
    assert "in use by another process" in capsys.readouterr().err


def test_a_corrupt_checkpoint_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    assert train(f"run.dir={run}") == 0
    files = [p for p in (run / "checkpoints" / "40").rglob("*") if p.is_file() and p.name != "lmkit_manifest.json"]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    capsys.readouterr()
    assert train(f"run.dir={run}") == 0
    out = capsys.readouterr().out.replace("\n", "")
    assert "checkpoint 40 is not used" in out
    assert "resumed at step 20" in out
    assert sorted(losses(run)) == list(range(1, 41))


def test_a_signal_during_an_evaluation_saves_that_step(tmp_path: Path, monkeypatch) -> None:
    def interrupted(*args) -> tuple[dict[str, float], None]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"eval/loss": 1.0, "eval/bits_per_byte": 1.0}, None

    monkeypatch.setattr("lmkit.train.evaluator.evaluate", interrupted)
    cadence = ["train.eval_every_steps=7", "checkpoint.save_every_steps=0"]
    assert train(f"run.dir={tmp_path / 'run'}", *cadence) == 130
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["7"]


def test_a_diverged_run_stops_and_keeps_its_last_good_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    overrides = [
        "optim=sgd",
        "optim.learning_rate=1e30",
        "optim.clip_norm=0",
        "checkpoint.save_every_steps=1",
        "optim.warmup_steps=0",
    ]
    assert train(f"run.dir={run}", *overrides) == 2
    assert "optim.learning_rate" in capsys.readouterr().err
    assert not [p for p in (run / "checkpoints").iterdir() if int(p.name) > 3]


@pytest.mark.skipif(os.geteuid() != 0, reason="LOUD: mounting needs root, a read-only disk is tested by /proc alone")
def test_a_read_only_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("LOUD: mount is not permitted here, a read-only disk is tested by /proc alone")
    try:
        assert train(f"run.dir={tmp_path / 'run'}") == 2
        assert f"cannot write run.dir={tmp_path / 'run'}: Read-only file system" in capsys.readouterr().err
        assert train("run.dir=/tmp", f"data.cache_dir={tmp_path / 'cache'}") == 2
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="LOUD: mounting a small disk needs root, a full disk is not tested")
def test_a_full_disk_ends_the_run_and_costs_nothing_saved(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("LOUD: mount is not permitted here, a full disk is not tested")
    try:
        run, often = tmp_path / "run", ["checkpoint.save_every_steps=1", "checkpoint.keep_last=100"]
        assert train(f"run.dir={run}", *often) == 2
        err = capsys.readouterr().err
        assert "the disk is full" in err
        assert "Traceback" not in err
        saved = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
        assert len(saved) > 1
        subprocess.run(["mount", "-o", "remount,size=400m", str(tmp_path)], check=True)
        assert train(f"run.dir={run}", *often) == 0
        assert f"resumed at step {saved[-1]}" in capsys.readouterr().out
        assert sorted(losses(run)) == list(range(1, 41))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=False)
