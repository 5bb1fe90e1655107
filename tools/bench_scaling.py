"""Weak scaling without hardware: the total compute of a training step on 1, 2, 4, 8 fake devices of one CPU.

    python tools/bench_scaling.py                       # fsdp over all devices, config S, 8 rows a device
    python tools/bench_scaling.py --axis data --rows 16

Each size is a process of its own with its own fake devices, and a batch that grows with them. They take turns while
the others sleep, each pinned to the same `--threads` CPUs (2: with one, threads that wait for another device's
part of a collective keep it from running). Ideal is the CPU seconds (user and system, all threads) of one device
times the number of devices; growth is what comes on top, in the same round, since neighbours on the machine slow all
sizes alike. Appends one JSON line a size to experiments/benchmarks/scaling.jsonl.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from bench import ROOT, Row, machine


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="S", help="T, S, M, G124 or G1B3 (tools/bench_worker.py)")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--axis", default="fsdp", choices=["data", "fsdp"])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=8, help="rows of the batch on each device")
    parser.add_argument("--threads", type=int, default=2, help="CPUs that each process is pinned to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--keys", nargs="*", default=[], help="further lmkit keys")
    parser.add_argument("--out", default=str(ROOT / "experiments" / "benchmarks" / "scaling.jsonl"))
    parser.add_argument("--verbose", action="store_true", help="show what the processes print")
    args = parser.parse_args()
    if args.devices[0] != 1:
        parser.error("--devices must begin with 1, which is what the others are measured against")
    return args


def growths(cpu: dict[int, list[float]]) -> dict[int, list[float]]:
    """By number of devices, each round's CPU seconds over the ideal, less one."""
    return {n: [mine / (n * one) - 1 for mine, one in zip(cpu[n], cpu[1], strict=True)] for n in cpu}


def main() -> None:
    """Runs the sizes in turns and prints the table."""
    args = parse()
    worker, rows = [sys.executable, str(ROOT / "tools" / "bench_worker.py")], {}
    for n in args.devices:
        axes = [f"mesh.{axis}={n if axis == args.axis else 1}" for axis in ("data", "fsdp")]
        keys = [f"run.cpu_devices={n}", f"train.batch_size={n * args.rows}", *axes, *args.keys]
        rows[n] = Row(f"{args.axis} {n}", [*worker, *keys], ROOT, args)
    for number in range(args.rounds):
        for row in rows.values():
            row.chunk(args.steps)
        turns = ", ".join(f"{row.name}: {row.cpu[-1]:.2f}" for row in rows.values())
        print(f"round {number + 1}/{args.rounds}, CPU s a step: {turns}", flush=True)
    found = growths({n: row.cpu for n, row in rows.items()})
    results = {n: row.result() for n, row in rows.items()}
    print(f"\n{'devices':8} {'CPU s/step':>10} {'(min-max)':>13} {'over ideal':>10} {'(min-max)':>18} {'MiB':>6} loss")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {name: getattr(args, name) for name in ("config", "dtype", "axis", "rows", "threads", "rounds", "keys")}
    facts |= {"when": time.strftime("%Y-%m-%d"), "machine": machine()}
    with out.open("a") as file:
        for n, result in results.items():
            growth = statistics.median(found[n])
            cpus, span = (f"({min(v):{f}}-{max(v):{f}})" for v, f in ((rows[n].cpu, ".2f"), (found[n], "+.1%")))
            print(f"{n:<8} {result['cpu_s']:10.2f} {cpus:>13} {growth:+10.1%} {span:>18} {result['peak_rss_mb']:6.0f} "
                  f"{result['last_loss']:.5f}")  # fmt: skip
            file.write(json.dumps(facts | {"devices": n, "growth": growth} | result) + "\n")


if __name__ == "__main__":
    main()
