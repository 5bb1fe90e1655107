"""Rows that take turns: started one after the other, timed A B A B, ended, and derived together."""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from speed.profile import op_table
from speed.records import ROOT, Record
from speed.rows import Row, Setting
from speed.tables import derived

RATES = str(ROOT / "tools" / "bench_rates.py")
_LEAST_SEC = 5.0  # for an answer


class Job(NamedTuple):
    """A row to be."""

    kind: str  # lmkit or peer
    name: str
    command: list[str]
    folder: Path


class Turns(NamedTuple):
    """How a point is measured."""

    rounds: int
    steps: int  # a turn
    warm: bool = False  # start each row again, with its compile cache filled
    profile: Path | None = None
    until: float = float("inf")  # time.time() after which no round begins, and no row has longer than a few seconds
    peer_python: str = sys.executable  # where PyTorch is


def measure(
    jobs: Sequence[Job], setting: Setting, turns: Turns, label: str, rates: list[Record] | None = None
) -> tuple[list[Record], list[Record]]:
    """(records of the rows, rates of the machine): `rates` where they are known, else measured between the rows."""
    with tempfile.TemporaryDirectory() as caches:

        def start(job: Job) -> Row:
            cache = str(Path(caches) / job.name.replace("/", "-"))
            flags = [f"--cache={cache}"] if job.kind == "lmkit" and turns.warm else []
            return _row(job.name, [*job.command, *flags], job.folder, setting, turns, TORCHINDUCTOR_CACHE_DIR=cache)

        pythons = {} if rates else {"jax": sys.executable}
        if pythons and any("torch" in " ".join(job.command) for job in jobs):
            pythons["torch"] = turns.peer_python
        machine = [
            _row(f"{library} rates", [python, RATES, "--lib", library], ROOT, setting, turns)
            for library, python in pythons.items()
        ]
        rows = [row.ready() for row in [start(job) for job in jobs]]
        for row in machine:
            row.ready()
        for number in range(turns.rounds):
            if number and time.time() > turns.until:
                print(f"{label}: {number} of {turns.rounds} rounds in the time", flush=True)
                break
            for row in [*machine, *rows]:
                row.chunk(turns.steps)
            done = ", ".join(f"{row.name} {row.cpu[-1]:.2f} CPU s" for row in rows if row.cpu)
            print(f"{label} {number + 1}/{turns.rounds}: {done}", flush=True)
        for job, row in zip(jobs, rows, strict=True) if turns.profile else []:
            place = turns.profile.resolve() / row.name  # type: ignore[union-attr]
            if ops := row.tell(f"profile {place}").get("ops") if job.kind == "lmkit" else None:
                print(f"\n{row.name}: the most expensive ops of {place}\n{op_table(ops)}\n")
        found = [{"kind": job.kind} | row.result() for job, row in zip(jobs, rows, strict=True)]
        for job, record in zip(jobs, found, strict=True) if turns.warm else []:
            if "error" not in record:
                again = start(job).ready()
                record["warm_first_step_s"] = again.info.get("to_first_step_s")
                again.tell("end")
                again.stop()
    rates = rates or [rates_of(row) for row in machine]
    return derived(found, rates), rates


def _row(name: str, command: list[str], folder: Path, setting: Setting, turns: Turns, **environment: str) -> Row:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    left = max(turns.until - time.time(), _LEAST_SEC)
    setting = setting._replace(limit_sec=min(setting.limit_sec, left))
    return Row(name, command, folder, setting, PYTHONPATH=path, **environment)


def rates_of(row: Row) -> Record:
    """Medians of what tools/bench_rates.py measured; None where it failed."""
    names = ("flops_per_sec", "flops_per_cpu_sec", "bytes_per_sec")
    facts = {"platform": row.info.get("platform", "cpu"), "device": row.info.get("device")}
    medians = {name: row.median(name) for name in names}
    figures = {name: float(f"{value:.4g}") for name, value in medians.items() if value}
    row.tell("end")
    row.stop()
    return {"name": row.name, "error": row.failure, "figures": figures} | facts | medians
