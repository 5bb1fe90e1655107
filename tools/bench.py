"""Training speed of lmkit beside its peers: interleaved, medians, CPU seconds per step.

    python tools/bench.py --config S                                  # lmkit alone
    python tools/bench.py --config S --peer "torch=python bench_torch_nano.py --opt fused" --peer-dir DIR
    python tools/bench.py --config S --sweep remat --sweep model.attention=xla,cudnn --sweep sequence

A peer is a command that takes --config, --dtype, --threads, --name, --interactive and speaks the protocol of
tools/bench_worker.py. All processes start, warm up, then take turns while the others sleep; so does what measures a
matrix product and a copy (tools/bench_rates.py), in jax and, beside a peer of PyTorch, in that. Each is pinned to
`--threads` CPUs. On a shared machine believe the CPU seconds and the ratios, not the wall time. A row that fails, for
want of memory too, says so. Appends one JSON line a row to experiments/benchmarks/train.jsonl at once and draws
report.html beside it; tools/bench_docs.py puts the figures into docs/performance.md.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from speed.page import write_page
from speed.records import BENCHMARKS, ROOT, Record, keep, newest, records, stamp
from speed.rows import Setting
from speed.sweeps import NAMES, Point, points_of
from speed.tables import terminal
from speed.turns import Job, Turns, measure

WORKER = [sys.executable, str(ROOT / "tools" / "bench_worker.py")]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", default="S", help="T, S, M, G124, 350M or G1B3 (tools/speed/model.py)")
    add("--dtype", default="fp32", choices=["fp32", "bf16"])
    add("--threads", type=int, default=1, help="CPUs that each process is pinned to; 0 = all")
    add("--rounds", type=int, default=5)
    add("--steps", type=int, default=3, help="steps a turn")
    add("--batch", type=int, help="sequences a step, of every row")
    add("--layers", type=int, help="of every row")
    add("--lmkit", action="append", default=[], help="NAME=KEYS: a row of lmkit with these keys")
    add("--peer", action="append", default=[], help="NAME=COMMAND")
    add("--peer-dir", default=".", help="where peers run")
    add("--peer-python", default=sys.executable, help="the python of their commands; PyTorch need not be in lmkit's")
    add("--sweep", action="append", default=[], help=f"KEY=v1,v2,... or one of {', '.join(NAMES)}; one after the other")
    add("--tokens", type=int, default=32768, help="a step, in the sweep over the sequence")
    add("--init", default="reference", choices=["reference", "own"], help="lmkit's weights: the peers', or its own")
    add("--warm", action="store_true", help="start each row again, with its compile cache filled")
    add("--profile", type=Path, help="folder for traces of lmkit's rows, which xprof opens; prints the dearest ops")
    add("--limit", type=float, default=3600, help="seconds that a row may take for its start or a turn")
    add("--seconds", type=float, default=1e6, help="in all: then no round begins, and the figures are of those done")
    add("--run", default="", help="name of the run, which several calls may share")
    add("--reuse-rates", action="store_true", help="the machine's rates as --run has measured them in another call")
    add("--together", action="store_true", help="start the rows beside each other: quicker, but less fair to a start")
    add("--label", default="", help="the rows are points of a sweep of this name")
    add("--rehearse", action="store_true", help="the lines count for nothing")
    add("--out", type=Path, default=BENCHMARKS, help="folder of train.jsonl and report.html")
    add("--verbose", action="store_true", help="show what the processes print")
    return parser.parse_args()


def setting_of(args: argparse.Namespace, point: Point) -> Setting:
    """What the rows of a point have in common."""
    flags = [f"--{name}={value}" for name in ("batch", "layers") if (value := getattr(args, name))]
    return Setting(point.config, point.dtype, args.threads, flags, args.together, args.limit, args.verbose)


def jobs_of(args: argparse.Namespace, point: Point) -> list[Job]:
    """Every row of a point."""
    jobs = []
    for spec in args.lmkit or ["lmkit="]:
        name, _, keys = spec.partition("=")
        name = f"{point.name}, {name}" if args.lmkit and point.name else point.name or name
        jobs.append(Job("lmkit", name, [*WORKER, f"--init={args.init}", *shlex.split(keys), *point.keys], ROOT))
    for spec in args.peer if not point.keys else []:  # peers know no keys of lmkit
        name, _, command = spec.partition("=")
        words = [args.peer_python if word == "python" else word for word in shlex.split(command)]
        if "torch" in command and not has_torch(args.peer_python):
            print(f"bench: {name} is left out: torch is not installed in {args.peer_python}")
            continue
        jobs.append(Job("peer", name, words, Path(args.peer_dir).resolve()))
    return jobs


def has_torch(python: str) -> bool:
    """Whether PyTorch is installed beside this interpreter."""
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([python, "-c", question]).returncode == 0


def known_rates(args: argparse.Namespace, dtype: str) -> list[Record] | None:
    """Those that this run has measured already, where they are to be taken."""
    found = [one for one in records(args.out, "rates") if (one["run"], one["dtype"]) == (args.run, dtype)]
    return newest(found, "name") if args.reuse_rates and found else None


def main() -> None:
    """Every point, kept as it comes."""
    args = parse()
    try:
        points = [one for sweep in args.sweep for one in points_of(sweep, args.config, args.dtype, args.tokens)]
    except ValueError as error:
        raise SystemExit(f"bench: {error}") from error
    turns = Turns(args.rounds, args.steps, args.warm, args.profile, time.time() + args.seconds, args.peer_python)
    began, kept = stamp() | {"threads": args.threads, "rounds": args.rounds}, []
    began |= ({"run": args.run} if args.run else {}) | ({"rehearsed": True} if args.rehearse else {})
    for point in points or [Point("", "", [], args.config, args.dtype)]:
        facts = {"config": point.config, "dtype": point.dtype, "sweep": point.sweep or args.label}
        facts |= {"asked_batch": args.batch, "asked_layers": args.layers}
        known = known_rates(args, point.dtype)
        rows, rates = measure(jobs_of(args, point), setting_of(args, point), turns, point.name or "round", known)
        kept += [keep(args.out, "train", began | facts | row) for row in rows]
        for rate in rates if known is None else []:
            keep(args.out, "rates", began | {"dtype": point.dtype} | rate)
        print("\n" + terminal(kept) + "\n", flush=True)
        write_page(
            args.out / "report.html", [one for one in records(args.out, "train") if one.get("run") == began["run"]]
        )
    print(args.out / "report.html")
    if all("error" in row for row in kept):
        raise SystemExit("bench: no row has a figure")


if __name__ == "__main__":
    main()
