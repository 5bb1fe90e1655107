"""Rows of a benchmark: processes that are told over stdin when to work, and sleep while the others do.

A row that fails says why and has no figures; the others go on.
"""

import json
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from speed.records import device_memory_mb

_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out of memory|OutOfMemoryError|MemoryError|std::bad_alloc", re.IGNORECASE)


class Setting(NamedTuple):
    """What all rows of a run have in common."""

    config: str
    dtype: str = "fp32"
    threads: int = 1  # CPUs that a process is pinned to; 0 for all
    flags: Sequence[str] = ()  # further ones, which every row understands
    together: bool = False  # rows start beside each other; `ready` waits for one
    limit_sec: float = 3600.0  # for one answer
    verbose: bool = False

    @property
    def cpus(self) -> list[int]:
        """Those that a process may use: the last so many."""
        return sorted(os.sched_getaffinity(0))[-self.threads :]


class Row:
    """One process: its answers and its CPU time."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, setting: Setting, **environment: str):
        self.name, self.setting, self.failure = name, setting, ""
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.answers: list[dict[str, Any]] = []
        cpus = setting.cpus
        flags = ["--config", setting.config, "--dtype", setting.dtype, "--threads", str(len(cpus)), *setting.flags]
        counts = {name: str(len(cpus)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self.process = subprocess.Popen(
            [*command, *flags, "--interactive", "--name", name], cwd=folder, env=os.environ | counts | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=None if setting.verbose else self._log,
        )  # fmt: skip
        os.sched_setaffinity(self.process.pid, cpus)  # before it has threads; a preexec_fn would fork beside jax's
        self.info = {} if setting.together else self._answer()

    def ready(self) -> "Row":
        """Waits until it is."""
        self.info = self.info or self._answer()
        return self

    def _answer(self) -> dict[str, Any]:
        """The next line of JSON; {} where the process ended or took too long."""
        late = threading.Timer(self.setting.limit_sec, self.process.kill)
        late.start()
        try:
            while line := self.process.stdout.readline():  # type: ignore[union-attr]
                if line.startswith("{"):
                    return json.loads(line)
        finally:
            in_time = late.is_alive()
            late.cancel()
        self.failure = self._reason(self.process.wait()) if in_time else f"over {self.setting.limit_sec:.0f} s"
        return {}

    def _reason(self, status: int) -> str:
        """Why it ended, in a few words. SIGKILL is what the kernel sends where memory runs out."""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        if status == -9 or any(_MEMORY.search(line) for line in lines):
            return "out of memory"
        last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
        return f"status {status}: {last[:200]}" if last else f"status {status}; see why with --verbose"

    def tell(self, text: str) -> dict[str, Any]:
        """A command, and its answer; {} of a row that has failed."""
        if self.failure:
            return {}
        try:
            print(text, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.failure = self._reason(self.process.wait())
            return {}
        return self._answer()

    def _cpu_seconds(self) -> float:
        clock = ~self.process.pid << 3 | 2  # clock_getcpuclockid(3) of all its threads: /proc counts in whole ticks
        return time.clock_gettime(clock)

    def chunk(self, steps: int) -> None:
        """Times `steps` steps."""
        if self.failure:
            return
        before = self._cpu_seconds()
        if answer := self.tell(f"go {steps}"):
            self.answers.append(answer)
            self.seconds.append(answer["chunk_s"])
            self.cpu.append((self._cpu_seconds() - before) / steps)

    def result(self) -> dict[str, Any]:
        """The figures: medians with the range; why there are none, of a row that failed."""
        used = device_memory_mb(self.process.pid) if not self.failure else None
        self.info |= self.tell("end")
        self.stop()
        if self.failure or not self.seconds:
            return {"name": self.name, "error": self.failure or "it was given no turn"}
        tokens, info = self.info["tokens_per_step"], self.info
        known = ("compile_s", "flops_per_step", "bytes_per_step", "device", "device_peak_mb", "keys", "batch", "seq")
        return {
            "name": self.name, "tokens_per_sec": tokens / statistics.median(self.seconds),
            "tokens_per_sec_min": tokens / max(self.seconds), "tokens_per_sec_max": tokens / min(self.seconds),
            "step_s": statistics.median(self.seconds), "tokens_per_step": tokens,
            "cpu_s": statistics.median(self.cpu), "cpu_s_min": min(self.cpu), "cpu_s_max": max(self.cpu),
            "to_first_step_s": info["to_first_step_s"], "peak_rss_mb": info.get("peak_rss_mb"),
            "device_used_mb": used, "first_loss": info["warm_losses"][0], "last_loss": info["last_loss"],
            "params": info["params"], "versions": info["versions"],
            **{name: info[name] for name in known if info.get(name) is not None},
        }  # fmt: skip

    def median(self, name: str) -> float | None:
        """Of what the answers say; None where they do not."""
        found = [answer[name] for answer in self.answers if answer.get(name)]
        return statistics.median(found) if found else None

    def stop(self) -> None:
        """Ends the process, which has had its chance to end by itself."""
        try:
            self.process.communicate(timeout=30)
        except (subprocess.TimeoutExpired, BrokenPipeError, ValueError):
            self.process.kill()
            self.process.wait()
