"""How long steps take by the accelerators' own compilers, with no accelerator: models x meshes x remat.

    python tools/bench_aot.py                                   # the points of the table in docs/performance.md
    python tools/bench_aot.py --model gpt2_124m --on 'v5e:2x4 fsdp=8' --on 'v5e:2x4 data=8' --remat dots full
    python tools/bench_aot.py --maxtext-python PYTHON           # and MaxText's step by the same compiler beside it
    python tools/bench_aot.py --docs                            # the table alone, from what was measured

Needs lmkit[tpu] and lmkit[gpu-aot], and JAX_PLATFORMS=cpu; a point takes one to some minutes. A point is a process, its
text is kept in the cache folder, and its figures are one line of experiments/benchmarks/aot.jsonl. What was compiled by
these versions of jax and of the compilers is not compiled again (--again does); --reread only reads the texts again.
What the figures are made of, and what is known of their error: docs/performance.md.
"""

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import bench_docs
from speed import ahead
from speed.ahead import Point
from speed.records import BENCHMARKS, Record, keep, records

from lmkit.compiler.choice import TPU_OPTIONS
from lmkit.config.entry import compose
from lmkit.config.paths import cache_dir
from lmkit.parallel.devices import setup_cpu

VERSIONS = ("jax", "libtpu", "jax-cuda13-plugin", "maxtext")
POINTS = [  # model, hardware, mesh, remat, further keys
    ("gpt2_124m", "v5e:2x4", "data=8", "dots", "train.batch_size=128"),
    ("gpt2_124m", "v5e:2x4", "fsdp=8", "dots", "train.batch_size=128"),
    ("gpt3_1b3", "v5e:4x4", "fsdp=16", "names", "train.batch_size=64"),
    ("llama3_8b", "v5e:8x8", "fsdp=64", "full", "data.seq_len=4096 train.batch_size=64"),
    ("gpt2_124m", "h100_1", "", "dots", "train.batch_size=32"),
    ("gpt3_1b3", "h100_1", "", "dots", "train.batch_size=8"),
]


def points(args: argparse.Namespace) -> list[Point]:
    """Those that were asked for, each with every option of its compiler."""
    chosen = POINTS
    if args.model:
        places = [one.partition(" ")[::2] for one in args.on]
        chosen = [(model, hardware, mesh, remat, args.keys) for model, (hardware, mesh), remat
                  in itertools.product(args.model, places, args.remat)]  # fmt: skip
    found = []
    for one in chosen:
        point = Point(*one, options="")
        platform = compose(point.words).hardware.platform
        # only weights that are split have a gather that could be cut up
        alone = platform != "tpu" or not any(axis in point.mesh for axis in ("fsdp", "tensor", "expert"))
        for options in list(TPU_OPTIONS)[: 1 if alone else None]:
            found += [point._replace(options=options, code=code) for code in ("lmkit", "maxtext")]
    return found


def name_of(point: Point, versions: dict[str, str]) -> str:
    """Of its files in the cache folder."""
    return hashlib.sha256(json.dumps([point, versions]).encode()).hexdigest()[:16]


def measure(point: Point, args: argparse.Namespace, done: list[Record]) -> str:
    """Compiles and reads one point, unless it was; what to say of it."""
    found = ahead.estimate_of(point)
    words = ahead.maxtext_words(point, found) if point.code == "maxtext" else None
    if point.code == "maxtext" and not (words and args.maxtext_python):
        return "no such model, remat or mesh in MaxText's table" if not words else "no row: --maxtext-python is not set"
    python = args.maxtext_python if point.code == "maxtext" else sys.executable
    named = ahead.compiled_by(python, *(VERSIONS if point.code == "maxtext" else VERSIONS[:3]))
    mine = "libtpu" if found.context.experiment.hardware.platform == "tpu" else "jax-cuda13-plugin"
    versions = {name: value for name, value in named.items() if name in ("jax", mine, "maxtext")}
    out = args.texts / name_of(point, versions)
    began, known = time.perf_counter(), Path(f"{out}.json").is_file() and not args.again
    if known and not args.reread and any(name_of(_point(row), row["versions"]) == out.name for row in done):
        return "is there"
    if not known:
        if point.code == "maxtext":
            assert words is not None
            ahead.compile_maxtext(python, words, out)
        else:
            command = [sys.executable, __file__, "--worker", json.dumps(point), "--texts", str(args.texts)]
            subprocess.run([*command, "--out", str(out)], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    record = keep(args.records, "aot", ahead.read(point, out, versions))
    return f"{record['seconds'] * 1e3:,.1f} ms a step, in {time.perf_counter() - began:.0f} s\n{_dearest(record)}"


def _point(row: Record) -> Point:
    return Point(*(row[name] for name in Point._fields))


def _dearest(record: Record) -> str:
    return "\n".join(
        f"    {one['seconds'] * 1e3:8.2f} ms {one['times']:6,} x {one['label'] or one['kind']:12.40} {one['place']} "
        f"{one['source'][-60:]}" for one in record["dearest"]
    )  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[], help="experiments; without it the points of the table")
    parser.add_argument("--on", action="append", default=[], help="hardware and mesh, such as 'v5e:2x4 fsdp=8'")
    parser.add_argument("--remat", nargs="+", default=["dots"])
    parser.add_argument("--keys", default="", help="further lmkit keys, of all these points")
    parser.add_argument("--maxtext-python", default="", help="a Python with MaxText and libtpu")
    parser.add_argument("--again", action="store_true", help="compile what was compiled")
    parser.add_argument("--reread", action="store_true", help="read texts that were kept, compile what has none")
    parser.add_argument("--docs", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--records", type=Path, default=BENCHMARKS, help="folder of aot.jsonl")
    parser.add_argument("--texts", type=Path, default=cache_dir() / "aot", help="folder of the programs' texts")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model and not args.on:
        parser.error("--model needs --on, such as --on 'v5e:2x4 fsdp=8'")
    return args


def main() -> None:
    args = parse()
    if args.worker:
        point = Point(*json.loads(args.worker))
        setup_cpu(compose(point.words).run)
        return ahead.compile_point(point, args.out)
    args.texts.mkdir(parents=True, exist_ok=True)
    chosen, failed = [] if args.docs else points(args), 0
    for number, point in enumerate(chosen):
        print(f"{number + 1} of {len(chosen)}: {point.title}", flush=True)
        try:
            print(f"  {measure(point, args, records(args.records, 'aot'))}", flush=True)
        except subprocess.CalledProcessError as error:
            failed += 1
            print(f"  it failed with status {error.returncode}; the others go on", flush=True)
    if args.records == BENCHMARKS:
        bench_docs.update()
    if failed:
        raise SystemExit(f"{failed} of {len(chosen)} points failed")


if __name__ == "__main__":
    main()
