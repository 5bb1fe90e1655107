"""Compile time: whether it grows with depth, and the time to the first step with an empty and with a full cache.

    python tools/bench_compile.py                              # gpt2_124m's shape, scanned, on an idle machine
    python tools/bench_compile.py --config T --layers 2 4

Growth is CPU seconds of tracing and compiling at the most layers over those at the fewest, medians. The time to the
first step is from the start of the process to the first loss, with --batch rows, so that the step itself is short;
"before it begins" ends where everything is compiled and the state is there.
Appends one JSON line to experiments/benchmarks/compile.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from speed.records import BENCHMARKS, ROOT, Record, keep, stamp

WORKER = [sys.executable, str(ROOT / "tools" / "bench_worker.py")]


def started(args: argparse.Namespace, *flags: str) -> Record:
    """What a worker says of itself. Raises SystemExit where it fails."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*WORKER, "--config", args.config, "--dtype", args.dtype, f"--batch={args.batch}", *flags, *args.keys],
        input="end\n", capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=args.limit,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"bench_compile: {' '.join(flags)}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[0])


def depths(args: argparse.Namespace) -> dict[int, float]:
    """CPU seconds of compiling by number of layers."""
    seconds: dict[int, list[float]] = {layers: [] for layers in args.layers}
    for number in range(args.rounds):
        for layers in args.layers:
            info = started(args, "--compile-only", f"--layers={layers}")
            seconds[layers].append(info["compile_cpu_s"])
            wall = info["compile_s"]
            print(f"round {number + 1}: {layers} layers {wall:.1f} s, {info['compile_cpu_s']:.1f} CPU s", flush=True)
    return {layers: statistics.median(found) for layers, found in seconds.items()}


def first_steps(args: argparse.Namespace) -> tuple[Record, Record]:
    """What workers say with an empty cache, and then with the one that was filled; the medians of some rounds."""
    cold, warm = [], []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for found in (cold, warm):
                found.append(started(args, "--warmup=1", "--init=own", f"--cache={cache}"))
        told = ", ".join(f"{found[-1]['to_first_step_s']:.1f} s" for found in (cold, warm))
        print(f"round {number + 1}: first step cold, warm {told}", flush=True)
    return middle(cold), middle(warm)


def middle(found: list[Record]) -> Record:
    """What they have in common, with the medians of their times."""
    times = {key: statistics.median(one[key] for one in found) for key in ("to_first_step_s", "to_ready_s")}
    return found[0] | times


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="G124")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 24, 48, 96])
    parser.add_argument("--rounds", type=int, default=3, help="of the compilations, interleaved, and of the starts")
    parser.add_argument("--keys", nargs="*", default=[], help="further lmkit keys")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that a process may take")
    parser.add_argument("--out", type=Path, default=BENCHMARKS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    found = depths(args)
    growth = found[max(found)] / found[min(found)]
    cold, warm = first_steps(args)
    figures = {f"{layers} layers, CPU s": round(seconds, 2) for layers, seconds in found.items()}
    figures |= {"growth": round(growth, 3)}
    figures |= {"first step cold, s": cold["to_first_step_s"], "warm, s": warm["to_first_step_s"]}
    figures |= {"before it begins cold, s": cold["to_ready_s"], "before it begins warm, s": warm["to_ready_s"]}
    record = stamp() | {
        "name": f"{args.config}, {args.dtype}", "platform": "cpu" if cold["device"] == "cpu" else "gpu",
        "device": None if cold["device"] == "cpu" else cold["device"], "batch": args.batch, "keys": args.keys,
        "growth": growth, "cold_s": cold["to_first_step_s"], "warm_s": warm["to_first_step_s"],
        "versions": cold["versions"], "figures": figures,
    }  # fmt: skip
    if args.config != "G124" or args.keys:
        record["rehearsed"] = True  # the goals are of gpt2_124m's shape
    keep(args.out, "compile", record)
    for name, value in figures.items():
        print(f"{name:24} {value:8.2f}")


if __name__ == "__main__":
    main()
