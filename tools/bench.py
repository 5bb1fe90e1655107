"""Training speed of lmkit beside its peers: interleaved, medians, CPU seconds per step.

    python tools/bench.py --config S                                  # lmkit alone
    python tools/bench.py --config S --peer "torch=python bench_torch_nano.py --opt fused" --peer-dir DIR

A peer is a command that takes --config, --dtype, --threads, --name, --interactive and speaks the protocol of
tools/bench_worker.py. All processes start, warm up, then take turns while the others sleep. Each is pinned to
`--threads` CPUs. On a shared machine believe the CPU seconds and the ratios, not the wall time. Appends one JSON
line a row to experiments/benchmarks/train.jsonl.
"""

import argparse
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")


class Row:
    """One process: its answers and its CPU time."""

    def __init__(self, name: str, command: list[str], folder: Path, args: argparse.Namespace):
        self.name, self.seconds, self.cpu = name, [], []
        flags = ["--config", args.config, "--dtype", args.dtype, "--threads", str(args.threads)]
        flags += ["--interactive", "--name", name]
        cpus = sorted(os.sched_getaffinity(0))[-args.threads :]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
        self.process = subprocess.Popen(
            [*command, *flags], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL if not args.verbose else None, preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )  # fmt: skip
        self.info = self._answer()

    def _answer(self) -> dict:
        while line := self.process.stdout.readline():  # type: ignore[union-attr]
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"bench: {self.name} ended with status {self.process.wait()}; see why with --verbose")

    def _tell(self, text: str) -> dict:
        print(text, file=self.process.stdin, flush=True)
        return self._answer()

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def chunk(self, steps: int) -> None:
        """Times `steps` steps."""
        before = self._cpu_seconds()
        self.seconds.append(self._tell(f"go {steps}")["chunk_s"])
        self.cpu.append((self._cpu_seconds() - before) / steps)

    def result(self) -> dict:
        """The figures: medians with the range."""
        self.info |= self._tell("end")
        self.process.wait()
        tokens = self.info["tokens_per_step"]
        return {
            "name": self.name, "tokens_per_sec": tokens / statistics.median(self.seconds),
            "tokens_per_sec_min": tokens / max(self.seconds), "tokens_per_sec_max": tokens / min(self.seconds),
            "cpu_s": statistics.median(self.cpu), "cpu_s_min": min(self.cpu), "cpu_s_max": max(self.cpu),
            "to_first_step_s": self.info["to_first_step_s"], "peak_rss_mb": self.info.get("peak_rss_mb"),
            "first_loss": self.info["warm_losses"][0], "last_loss": self.info["last_loss"],
            "params": self.info["params"], "versions": self.info["versions"],
        }  # fmt: skip


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="S", help="T, S, M, G124 or G1B3 (tools/bench_worker.py)")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1, help="CPUs that each process is pinned to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--lmkit", action="append", default=[], help="NAME=KEYS: a row of lmkit with these keys")
    parser.add_argument("--peer", action="append", default=[], help="NAME=COMMAND")
    parser.add_argument("--peer-dir", default=".", help="where peers run")
    parser.add_argument("--out", default=str(ROOT / "experiments" / "benchmarks" / "train.jsonl"))
    parser.add_argument("--verbose", action="store_true", help="show what the processes print")
    return parser.parse_args()


def main() -> None:
    """Runs the rows in turns and prints the table."""
    args = parse()
    worker, folder = [sys.executable, str(ROOT / "tools" / "bench_worker.py")], Path(args.peer_dir).resolve()
    rows = []
    for spec in args.lmkit or ["lmkit="]:
        name, _, keys = spec.partition("=")
        rows.append(Row(name, [*worker, *shlex.split(keys)], ROOT, args))
    for spec in args.peer:
        name, _, command = spec.partition("=")
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        if "torch" in command and importlib.util.find_spec("torch") is None:
            print(f"bench: {name} is left out: torch is not installed")
            continue
        rows.append(Row(name, words, folder, args))
    for number in range(args.rounds):
        for row in rows:
            row.chunk(args.steps)
        turns = ", ".join(f"{row.name} {row.cpu[-1]:.2f} CPU s" for row in rows)
        print(f"round {number + 1}/{args.rounds}: {turns}", flush=True)
    results = [row.result() for row in rows]
    best_peer = min((r["cpu_s"] for r in results[len(args.lmkit or [0]) :]), default=None)
    table(results, best_peer)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"config": args.config, "dtype": args.dtype, "threads": args.threads, "rounds": args.rounds}
    facts |= {"when": time.strftime("%Y-%m-%d"), "machine": machine()}
    with out.open("a") as file:
        for result in results:
            file.write(json.dumps(facts | result) + "\n")


def table(results: list[dict], best_peer: float | None) -> None:
    """Prints the rows; the ratio is CPU seconds against the fastest peer's."""
    widths = f"{'name':24} {'tok/s':>8} {'(min-max)':>17} {'CPU s/step':>10} {'(min-max)':>13} {'ratio':>6}"
    print(f"\n{widths} {'1st step':>8} {'MiB':>6} first and last loss")
    for r in results:
        r["ratio"] = r["cpu_s"] / best_peer if best_peer else None
        ratio = f"{r['ratio']:.2f}" if best_peer else "-"
        rates = f"({r['tokens_per_sec_min']:.0f}-{r['tokens_per_sec_max']:.0f})"
        cpus = f"({r['cpu_s_min']:.2f}-{r['cpu_s_max']:.2f})"
        speed = f"{r['tokens_per_sec']:8.0f} {rates:>17} {r['cpu_s']:10.2f} {cpus:>13} {ratio:>6}"
        print(f"{r['name']:24} {speed} {r['to_first_step_s']:8.1f} {r['peak_rss_mb'] or 0:6.0f} ", end="")
        print(f"{r['first_loss']:.5f} {r['last_loss']:.5f}")


def machine() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


if __name__ == "__main__":
    main()
