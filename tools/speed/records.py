"""What was measured, as JSON lines: one file a kind, the newest line of the same thing counts."""

import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "experiments" / "benchmarks"
Record = dict[str, Any]


def keep(folder: Path, kind: str, record: Record) -> Record:
    """Appends a record to `kind`.jsonl at once, so that what is cut off later loses nothing; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{kind}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    return record


def records(folder: Path, kind: str) -> list[Record]:
    """All of a kind, oldest first."""
    path = folder / f"{kind}.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]


def newest(found: list[Record], *names: str) -> list[Record]:
    """The last record of each combination of these keys' values, in the order in which those first appeared."""
    return list({tuple(str(one.get(name)) for name in names): one for one in found}.values())


def stamp() -> Record:
    """When and where: what every record begins with."""
    return {"when": time.strftime("%Y-%m-%d"), "run": time.strftime("%Y%m%d-%H%M%S"), "machine": machine()}


def machine() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def process_start() -> float:
    """When this process was started, in seconds since the epoch: before the interpreter, and before it starts again."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - (up - ticks / os.sysconf("SC_CLK_TCK"))


def free_bytes() -> int:
    """Memory that a new process could have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def device_memory_mb(pid: int) -> float | None:
    """What the driver says that a process holds of an NVIDIA GPU; None where it says nothing."""
    if not (tool := shutil.which("nvidia-smi")):
        return None
    command = [tool, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    pairs = [line.split(",") for line in said.splitlines() if line.count(",") == 1]
    found = [float(used) for one, used in pairs if one.strip() == str(pid) and used.strip().isdigit()]
    return sum(found) if found else None
