"""Weak scaling without hardware: the total compute of a training step on 1, 2, 4, 8 fake devices of one CPU.

    python tools/bench_scaling.py                       # fsdp over all devices, config S, 16 rows a device
    python tools/bench_scaling.py --axis data --rows 8

Each size is a process of its own with its own fake devices and a batch that grows with them, pinned to `--threads`
CPUs. One runs after the other: held in memory together, the larger ones cost up to a half more. Ideal is the CPU
seconds (user and system, all threads) of one device times the number of devices; growth is what comes on top. Believe
the CPU seconds, not the wall time, and only differences beyond the range of a size. Appends one JSON line a size to
experiments/benchmarks/scaling.jsonl.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from speed.records import ROOT, machine
from speed.rows import Row, Setting


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="S", help="T, S, M, G124 or G1B3 (tools/bench_worker.py)")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--axis", default="fsdp", choices=["data", "fsdp"])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=16, help="rows of the batch on each device")
    parser.add_argument("--threads", type=int, default=2, help="CPUs that a process is pinned to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--keys", nargs="*", default=[], help="further lmkit keys")
    parser.add_argument("--out", default=str(ROOT / "experiments" / "benchmarks" / "scaling.jsonl"))
    parser.add_argument("--verbose", action="store_true", help="show what the processes print")
    args = parser.parse_args()
    if args.devices[0] != 1:
        parser.error("--devices must begin with 1, which is what the others are measured against")
    return args


def main() -> None:
    """Runs the sizes and prints the table."""
    args = parse()
    worker, out = [sys.executable, str(ROOT / "tools" / "bench_worker.py")], Path(args.out)
    facts = {name: getattr(args, name) for name in ("config", "dtype", "axis", "rows", "threads", "rounds", "keys")}
    facts |= {"when": time.strftime("%Y-%m-%d"), "machine": machine()}
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{'devices':8} {'CPU s/step':>10} {'(min-max)':>13} {'over ideal':>10} {'(min-max)':>18} {'MiB':>6} loss")
    one, setting = 0.0, Setting(args.config, args.dtype, args.threads, verbose=args.verbose)
    for n in args.devices:
        axes = [f"mesh.{axis}={n if axis == args.axis else 1}" for axis in ("data", "fsdp")]
        keys = [f"run.cpu_devices={n}", f"train.batch_size={n * args.rows}", *axes, *args.keys]
        row = Row(f"{args.axis} {n}", [*worker, *keys], ROOT, setting)
        for _ in range(args.rounds):
            row.chunk(args.steps)
        if "error" in (result := row.result()):
            raise SystemExit(f"bench_scaling: {n} devices: {result['error']}")
        one = one or result["cpu_s"]
        growth = [cpu / (n * one) - 1 for cpu in (result["cpu_s"], result["cpu_s_min"], result["cpu_s_max"])]
        cpus, span = f"({min(row.cpu):.2f}-{max(row.cpu):.2f})", f"({growth[1]:+.1%}-{growth[2]:+.1%})"
        print(f"{n:<8} {result['cpu_s']:10.2f} {cpus:>13} {growth[0]:+10.1%} {span:>18} {result['peak_rss_mb']:6.0f} "
              f"{result['last_loss']:.5f}", flush=True)  # fmt: skip
        with out.open("a") as file:
            file.write(json.dumps(facts | {"devices": n, "growth": growth[0]} | result) + "\n")


if __name__ == "__main__":
    main()
