"""The plan's memory beside the compiler's, for models from 124 million parameters to 175 billion.

    python tools/plan_table.py             the table in docs/plan.md, with the compilers' figures as they were measured
    python tools/plan_table.py --compile   and measures those again: for an hour, with lmkit[tpu] and lmkit[gpu-aot]

One point is one process: a compiler for TPUs wants its platform to itself. What is measured is added to
experiments/benchmarks/plan_memory.jsonl, where the newest line of a point counts.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from lmkit.config.entry import compose
from lmkit.cost.estimate import Estimate, estimate
from lmkit.parallel.devices import setup_cpu
from lmkit.plan.compiled import compiled_plan

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "benchmarks" / "plan_memory.jsonl"
PAGE = ROOT / "docs" / "plan.md"
START, END = "<!-- tools/plan_table.py -->\n", "<!-- end -->\n"
POINTS = [  # experiment, hardware, mesh, remat, more
    ("gpt2_124m", "v5e:2x4", "fsdp=8", "none", "train.batch_size=64"),
    ("gpt2_124m", "v5e:4x4", "fsdp=8 data=2", "names", "train.batch_size=256"),
    ("gpt2_124m", "v6e:2x4", "fsdp=4 tensor=2", "dots", "train.batch_size=128"),
    ("gpt2_124m", "h100_8", "fsdp=8", "none", "train.batch_size=64"),
    ("gpt2_124m", "h100_8", "data=8", "names", "train.batch_size=128"),
    ("gpt3_1b3", "v5e:4x4", "fsdp=16", "names", "train.batch_size=64"),
    ("gpt3_1b3", "v5e:4x4", "fsdp=16", "names", "train.batch_size=512"),
    ("gpt3_1b3", "v6e:4x4", "fsdp=8 tensor=2", "full", "train.batch_size=128"),
    ("gpt3_1b3", "h100_16", "fsdp=16", "names", "train.batch_size=128"),
    ("gpt3_1b3", "h100_8", "fsdp=4 tensor=2", "dots", "train.batch_size=128"),
    ("gpt3_6b7", "v5p:4x4x4", "fsdp=64", "names", "train.batch_size=256"),
    ("gpt3_6b7", "v5e:8x8", "fsdp=16 tensor=4", "full", "train.batch_size=256"),
    ("gpt3_6b7", "h100_64", "fsdp=64", "full", "train.batch_size=512"),
    ("llama3_8b", "v5e:16x16", "fsdp=64 tensor=4", "full", "data.seq_len=4096 train.batch_size=256"),
    ("llama3_8b", "h100_64", "fsdp=64", "full", "train.batch_size=128"),
    ("llama3_70b", "v5p:8x8x8", "fsdp=128 tensor=4", "full", "train.batch_size=512"),
    ("mixtral_8x7b", "v5p:4x4x8", "fsdp=128", "full", "train.batch_size=128"),
    ("gpt3_175b", "v5p:8x8x8", "fsdp=64 tensor=8", "full", ""),
    ("gpt3_175b", "v5p:4x4x8", "fsdp=16 tensor=8", "full", "train.batch_size=128"),
    ("gpt3_1b3", "h100_8", "data=2 fsdp=4", "none", "train.batch_size=32 train.accumulate_steps=2"),
    ("llama3_8b", "h100_32", "fsdp=16 tensor=2", "names", "train.batch_size=64"),
    ("llama3_8b", "v6e:8x8", "fsdp=64", "names", "train.batch_size=64"),
    ("gpt3_1b3", "v5p:2x2x2", "fsdp=4 context=2", "names", "train.batch_size=32"),
    ("gpt3_6b7", "h100_64", "fsdp=16 stage=4", "full", "train.batch_size=256"),
    ("mixtral_8x7b", "h100_64", "fsdp=8 expert=8", "full", "train.batch_size=64"),
]
Point = tuple[str, str, str, str, str]


def words_of(point: Point) -> list[str]:
    """What `lmkit.plan` would be called with."""
    name, hardware, mesh, remat, more = point
    axes = [f"mesh.{axis}" for axis in mesh.split()]
    whole = [] if "data=" in mesh else ["mesh.data=1"]
    vocab = ["model.vocab_size=50304"] if name == "gpt2_124m" else []
    return [f"+experiment={name}", f"hardware={hardware}", *whole, *axes, f"model.remat={remat}", *vocab, *more.split()]


def estimate_of(point: Point) -> Estimate:
    """The arithmetic."""
    experiment = compose(words_of(point))
    setup_cpu(experiment.run)
    return estimate(experiment)


def measure(point: Point) -> None:
    """Compiles a point and writes down what came of it."""
    found = compiled_plan(estimate_of(point).context)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu", "jax-cuda13-plugin")}
    line = {
        "point": point, "peak_bytes": found.peak, "argument_bytes": found.arguments, "temp_bytes": found.temporary,
        "arrays": [(round(one.size / 2**20, 1), one.array, one.source) for one in found.arrays],
        "refusal": found.refusal, "seconds": round(found.seconds, 1), "versions": versions,
    }  # fmt: skip
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def measured() -> dict[Point, dict]:
    """The newest line of each point."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    found = {tuple(line["point"]): line for line in lines}
    return {point: found[point] for point in POINTS if point in found}


def table() -> str:
    """In Markdown."""
    rows = ["| model | hardware | mesh | remat | rows | compiler, GiB | plan, GiB | | fits |", "|---" * 9 + "|"]
    for point, line in measured().items():
        found = estimate_of(point)
        name, hardware, mesh, remat, _ = point
        ratio = f"{found.memory.peak / line['peak_bytes'] - 1:+.1%}" if line["peak_bytes"] else ""
        fits = "no" if line["refusal"] or line["peak_bytes"] > found.limit else "yes"
        agree = "" if (fits == "yes") == found.fits else ", the plan is wrong"
        rows.append(
            f"| {name} | {hardware} | {mesh} | {remat} | {found.context.experiment.train.batch_size} "
            f"| {line['peak_bytes'] / 2**30:.2f} | {found.memory.peak / 2**30:.2f} | {ratio} | {fits}{agree} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="measure every point again")
    parser.add_argument("--missing", action="store_true", help="measure the points that were never measured")
    parser.add_argument("--point", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point is not None:
        return measure(POINTS[args.point])
    done = {} if args.compile else measured() if args.missing else dict.fromkeys(POINTS)
    for number, point in enumerate(POINTS):
        if point not in done:
            print(f"{number + 1} of {len(POINTS)}: {' '.join(words_of(point))}", flush=True)
            command = [sys.executable, __file__, "--point", str(number)]
            if subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}).returncode:
                print("  it failed; the others go on", flush=True)
    text = PAGE.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    PAGE.write_text(before + START + table() + END + after)
    print(table())


if __name__ == "__main__":
    main()
