"""A real Slurm of two pretended nodes: a job of two processes that is stopped, requeued and resumed; a sweep."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import ROOT
from lmkit.tracker import read_rows

MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"LOUD: no job was run: {MISSING} missing; tools/slurm_local.sh"),
    pytest.mark.skipif(os.getuid() != 0, reason="LOUD: a local Slurm needs root: no job was run"),
]
TINY = [
    "+experiment=gpt_tiny", "tracker=none", "train.sample_tokens=0", "train.eval_every_steps=0", "train.eval_batches=1",
    "checkpoint.save_every_steps=0", "optim.warmup_steps=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which sbatch and squeue talk to a Slurm of our own."""
    folder = tmp_path_factory.mktemp("slurm")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1] % 20000 + 10000
    tool = [str(ROOT / "tools" / "slurm_local.sh")]
    env = {**os.environ, "SLURM_LOCAL_PORT": str(port), "JAX_NUM_CPU_DEVICES": ""}
    del env["JAX_NUM_CPU_DEVICES"]  # of the tests' own process; jobs say run.cpu_devices
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    started = subprocess.run([*tool, "start", str(folder)], env=env, capture_output=True, text=True)
    try:
        assert started.returncode == 0, started.stderr
        yield {**env, "SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run([*tool, "stop", str(folder)], env=env, check=True)


def lmkit(verb: str, *words: str, slurm: dict[str, str], cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"lmkit.{verb}", *words]
    return subprocess.run(command, env=slurm, cwd=cwd, capture_output=True, text=True, timeout=500)


def show(job: str, slurm: dict[str, str]) -> dict[str, str]:
    """What Slurm says of a job."""
    said = subprocess.run(["scontrol", "show", "job", "-o", job], env=slurm, capture_output=True, text=True, check=True)
    return dict(word.split("=", 1) for word in said.stdout.split() if "=" in word)


def wait_for(what, *, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not after {seconds} s; the log ends\n{log.read_text()[-3000:] if log.exists() else ''}"
            )
        time.sleep(0.2)


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in read_rows(run / "metrics.jsonl") if "train/loss" in row}


def test_two_processes_stop_go_back_into_the_queue_and_end_as_one(slurm: dict[str, str], tmp_path: Path) -> None:
    words = [*TINY, "train.steps=120", "train.log_every_steps=1", "mesh.data=2", "mesh.fsdp=2"]
    job = ["target=slurm", "launch.submit=true", "launch.nodes=2", "launch.partition=cpu", "run.cpu_devices=2"]
    done = lmkit("launch", *job, *words, slurm=slurm, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    number = re.search(r"Submitted batch job (\d+)", done.stdout)[1]  # type: ignore[index]
    log, run = tmp_path / f"gpt-tiny-{number}.log", tmp_path / "runs" / "gpt_tiny" / f"slurm-{number}"

    wait_for(lambda: run.is_dir() and len(losses(run)) > 3, seconds=200, log=log)
    subprocess.run(["scancel", "--signal=TERM", number], env=slurm, check=True)
    wait_for(lambda: show(number, slurm)["Restarts"] == "1", seconds=60, log=log)
    reached = max(losses(run))
    assert 3 < reached < 120
    assert json.loads((run / "summary.json").read_text())["steps"] == reached

    # Slurm lets two minutes go by before it starts a job again; nodes refuse it in the second in which it was ended.
    time.sleep(3)
    subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], env=slurm, check=True)
    ended = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
    wait_for(lambda: show(number, slurm)["JobState"] in ended, seconds=300, log=log)
    assert show(number, slurm)["JobState"] == "COMPLETED", log.read_text()[-3000:]
    assert "status 75: the job goes back into the queue" in log.read_text()
    assert f"resumed at step {reached}" in log.read_text()
    assert json.loads((run / "summary.json").read_text())["steps"] == 120
    receipt = json.loads((run / "receipt.json").read_text())
    assert receipt["devices"]["count"] == 4, "two processes of two devices are one run"

    alone = lmkit("train", *words, "run.cpu_devices=4", "run.dir=alone", slurm=slurm, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    expected, found = losses(tmp_path / "alone"), losses(run)
    assert found.keys() == expected.keys()
    for step in range(1, 11):  # float32 in another order of sums: equal within 1e-5 at first, then they drift
        assert abs(found[step] - expected[step]) < 1e-5 * expected[step], step


def test_a_sweep_of_two_points(slurm: dict[str, str], tmp_path: Path) -> None:
    words = [*TINY, "train.steps=6", "run.cpu_devices=2", "optim.learning_rate=1e-3,3e-3"]
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=cpu", "hydra.launcher.mem_gb=2"]
    launcher += ["hydra.launcher.timeout_min=5", "hydra.sweep.dir=out"]
    done = lmkit("train", "--multirun", *words, *launcher, slurm=slurm, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rates = [read_rows(tmp_path / "out" / "gpt_tiny" / str(n) / "metrics.jsonl") for n in range(2)]
    assert all(len(rows) > 1 for rows in rates)
    first, second = (losses(tmp_path / "out" / "gpt_tiny" / str(n)) for n in range(2))
    assert first[1] == second[1], "the same model and batch"
    assert first[6] != second[6], "another learning rate"


def test_scancel_ends_a_job_for_good(slurm: dict[str, str], tmp_path: Path) -> None:
    words = ["target=slurm", "launch.submit=true", "run.cpu_devices=2", *TINY, "train.steps=100000"]
    done = lmkit("launch", *words, slurm=slurm, cwd=tmp_path)
    number = re.search(r"Submitted batch job (\d+)", done.stdout)[1]  # type: ignore[index]
    log, run = tmp_path / f"gpt-tiny-{number}.log", tmp_path / "runs" / "gpt_tiny" / f"slurm-{number}"
    wait_for(lambda: run.is_dir() and losses(run), seconds=120, log=log)
    subprocess.run(["scancel", number], env=slurm, check=True)
    wait_for(lambda: show(number, slurm)["JobState"] == "CANCELLED", seconds=60, log=log)
    wait_for(lambda: (run / "summary.json").is_file(), seconds=30, log=log)
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped by SIGTERM", "it saved, as well"
    assert show(number, slurm)["Restarts"] == "0"
