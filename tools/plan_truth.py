"""Planned against measured on the CPU that is here: three models, before and after a calibration from one of them.

    python tools/plan_truth.py [--rounds 3] [--cores 1] [--learn gpt_small] [--out FOLDER]

Each model trains a few steps, plan.calibrate learns from one of these runs, then all train again (gpt_tiny, whose
steps are short, several times). The figures are
those of the receipts, of all rounds their medians; rounds take turns, for on a shared machine an hour is not like the
next. "Before" is planned with the shares that are assumed and the rates that a run measures of the machine as it
starts. Runs are pinned to --cores. On one core a step's time is its CPU seconds, which say the same on a busy machine.
Prints a Markdown table, and keeps every run and receipt under --out; --show prints that of an earlier one again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lmkit.config.paths import cache_dir

ROOT = Path(__file__).resolve().parents[1]
FEW = ["tracker=none", "train.sample_tokens=0", "train.eval_every_steps=0", "checkpoint.save_every_steps=0",
       "data.holdout_every=600", "optim.warmup_steps=1"]  # fmt: skip
MODELS = {
    "gpt_tiny": ["+experiment=gpt_tiny", "train.steps=200", "train.log_every_steps=20"],
    "gpt_small": ["+experiment=gpt_small", "train.steps=24"],
    "gpt_34m": ["+experiment=gpt_small", "run.name=gpt_34m", "tokenizer.vocab_size=8192", "model.num_layers=8",
             "model.num_heads=8", "model.embed_dim=512", "optim=adamw", "optim.learning_rate=3e-4",
             "train.batch_size=4", "train.steps=12"],
}  # fmt: skip

REPEATS = {"gpt_tiny": 5}  # milliseconds are disturbed more than seconds


def lmkit(verb: str, words: list[str], calibrations: Path, cores: set[int]) -> None:
    """Runs a verb on these cores, with a file of calibrations of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"lmkit.{verb}", *words], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        env={**os.environ, "LMKIT_CACHE": str(calibrations), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"lmkit.{verb} {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> None:
    """Trains, learns, trains again, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--learn", default="gpt_small", choices=MODELS)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--show", type=Path, default=None)
    args = parser.parse_args()
    if args.show:
        return show(args.show)
    out = (args.out or Path(tempfile.mkdtemp(prefix="plan_truth_")) / "runs").absolute()
    if out.exists():
        parser.error(f"--out {args.out} is there already: its runs would go on where they were")
    cores = set(sorted(os.sched_getaffinity(0))[-args.cores :])
    data = f"data.cache_dir={cache_dir()}"
    for folder in (out / str(number) for number in range(args.rounds)):
        for when in ("before", "after"):
            for name, words in MODELS.items():
                for again in range(REPEATS.get(name, 1)):
                    run = folder / f"{name}_{when}_{again}"
                    lmkit("train", [*words, *FEW, data, f"run.dir={run}"], folder, cores)
                    print(f"{run} is done", file=sys.stderr, flush=True)
            if when == "before":
                lmkit("plan", [f"plan.calibrate={folder / f'{args.learn}_before_0'}"], folder, cores)
    show(out)
    print(f"\nruns and receipts: {out}")


def show(out: Path) -> None:
    """A row a model: medians over all runs and what one is over the other, and the range of the measured."""
    told = {
        (name, when): [json.loads(file.read_text()) for file in out.glob(f"*/{name}_{when}_*/receipt.json")]
        for name in MODELS for when in ("before", "after")
    }  # fmt: skip
    alone = told["gpt_tiny", "after"][0]["measured"]["cores"] == 1
    unit = "CPU s a step" if alone else "s a step"
    print(f"| | {unit}: planned | measured | | after: planned | measured | range, runs | "
          f"| MiB: planned | measured | |\n|{'---|' * 11}")  # fmt: skip
    for name in MODELS:
        cells = [name]
        for when in ("before", "after"):
            planned = statistics.median(row["planned"]["step_sec"] for row in told[name, when])
            every = [row["measured"]["cpu_sec" if alone else "step_sec"] for row in told[name, when]]
            measured = statistics.median(every)
            cells += [f"{planned:.3g}", f"{measured:.3g}"]
            cells += [f"{min(every):.3g}-{max(every):.3g}, {len(every)}"] if when == "after" else []
            cells += [f"{planned / measured - 1:+.0%}"]
        a, b = (told[name, "after"][0][part]["memory_bytes"] / 2**20 for part in ("planned", "measured"))
        print(f"| {' | '.join([*cells, f'{a:,.1f}', f'{b:,.1f}', f'{a / b - 1:+.1%}'])} |")
    loads = [row["measured"]["load"] for rows in told.values() for row in rows]
    print(f"\nload of the machine {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
