"""Scripts run with pretended programs: what they were called with, and the statuses they are told to end with."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment

TRAINER = """#!{python}
# Stands for the interpreter of the job: notes its words, ends with the next status of the file.
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
with (folder / "trained.jsonl").open("a") as out:
    names = ("SLURM_PROCID", "JAX_COORDINATOR_ADDRESS", "LMKIT_CACHE", "LMKIT_JOB_TOKEN")
    print(json.dumps({{"argv": sys.argv[1:], "env": {{n: os.environ.get(n) for n in names}}}}), file=out)
left = (folder / "statuses").read_text().split() if (folder / "statuses").exists() else []
if left:
    (folder / "statuses").write_text(" ".join(left[1:]))
sys.exit(int(left[0]) if left else 0)
"""
GPT = ["+experiment=gpt_tiny", "run.cpu_devices=2", "train.batch_size=16"]
TARGETS = {
    "slurm": ["launch.nodes=2"],
    "gke": ["launch.accelerator=tpu-v6e-slice", "launch.topology=4x4", "launch.image=a/b:c", "launch.volume=gs://bucket"],
    "tpu_pod": ["launch.accelerator=v6e-16", "launch.zone=us-central2-b", "launch.volume=10.0.0.2:/vol"],
}  # fmt: skip


def experiment_of(target: str, *overrides: str) -> Experiment:
    """A small experiment with what the target needs."""
    return compose([*GPT, f"launch.target={target}", "launch.name=job", *TARGETS[target], *overrides])


def program(folder: Path, name: str, text: str) -> Path:
    """An executable file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def trainer(folder: Path) -> str:
    """A pretended interpreter; see `trained`."""
    return str(program(folder, "trainer", TRAINER.format(python=sys.executable, folder=str(folder))))


def trained(folder: Path) -> list[dict]:
    """What each call of the trainer got."""
    file = folder / "trained.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_bash(script: str, folder: Path, *, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Runs a script in `folder`, which comes first in PATH."""
    path = folder / "script.sh"
    path.write_text(script)
    return subprocess.run(
        ["bash", str(path)], cwd=folder, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "POLL_SEC": "0.01", **(env or {})},
    )  # fmt: skip
