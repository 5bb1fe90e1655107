"""Planned against measured on the CPU that is here: three models, before and after a calibration from one of them.

    python tools/plan_truth.py [--rounds 3] [--cores 1] [--learn gpt_small] [--out FOLDER]

Each model trains a few steps, plan.calibrate learns from one of these runs, then all train again. The figures are
those of the receipts, of all rounds their medians; rounds take turns, for on a shared machine an hour is not like the
next. "Before" is planned with the shares that are assumed and the rates that a run measures of the machine as it
starts. Runs are pinned to --cores. On one core a step's time is its CPU seconds, which say the same on a busy machine.
Prints a Markdown table, and keeps every run and receipt under --out.
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
    "34 M": ["+experiment=gpt_small", "run.name=gpt_34m", "tokenizer.vocab_size=8192", "model.num_layers=8",
             "model.num_heads=8", "model.embed_dim=512", "optim=adamw", "optim.learning_rate=3e-4",
             "train.batch_size=4", "train.steps=12"],
}  # fmt: skip


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
    args = parser.parse_args()
    out = (args.out or Path(tempfile.mkdtemp(prefix="plan_truth_"))).absolute()
    if args.out and args.out.exists():
        parser.error(f"--out {args.out} is there already: its runs would go on where they were")
    cores = set(sorted(os.sched_getaffinity(0))[-args.cores :])
    data = f"data.cache_dir={cache_dir()}"
    told: dict[tuple[str, str], list[dict]] = {}
    for number in range(args.rounds):
        folder = out / str(number)
        for when in ("before", "after"):
            for name, words in MODELS.items():
                run = folder / f"{name.replace(' ', '')}_{when}"
                lmkit("train", [*words, *FEW, data, f"run.dir={run}"], folder, cores)
                receipt = json.loads((run / "receipt.json").read_text())
                row = {"name": name, "when": when, **{key: receipt[key] for key in ("planned", "measured")}}
                told.setdefault((name, when), []).append(row)
                print(number, name, when, f"planned {row['planned']['step_sec']:.4g}",
                      f"measured {row['measured']['step_sec']:.4g} s, {row['measured']['cpu_sec']:.4g} CPU s,",
                      f"load {row['measured']['load']:.1f}", file=sys.stderr, flush=True)  # fmt: skip
            if when == "before":
                learnt = folder / f"{args.learn.replace(' ', '')}_before"
                lmkit("plan", [f"plan.calibrate={learnt}"], folder, cores)
    show(told)
    print(f"\nruns and receipts: {out}")


def show(told: dict[tuple[str, str], list[dict]]) -> None:
    """A row a model: medians over the rounds; the ratios are those within a round, with their range after."""
    alone = next(iter(told.values()))[0]["measured"]["cores"] == 1
    unit = "CPU s a step" if alone else "s a step"
    print(f"| | {unit}, planned before | measured | | planned after | measured | | of rounds | wall s a step | "
          f"MiB planned | measured | |\n|{'---|' * 12}")  # fmt: skip
    for name in MODELS:
        cells, ratios = [name], []
        for when in ("before", "after"):
            rows = told[name, when]
            planned = [row["planned"]["step_sec"] for row in rows]
            measured = [row["measured"]["cpu_sec" if alone else "step_sec"] for row in rows]
            ratios = [a / b for a, b in zip(planned, measured, strict=True)]
            cells += [f"{statistics.median(planned):.4g}", f"{statistics.median(measured):.4g}",
                      f"{statistics.median(ratios) - 1:+.1%}"]  # fmt: skip
        after = told[name, "after"]
        wall = statistics.median(row["measured"]["step_sec"] for row in after)
        a, b = (after[0][part]["memory_bytes"] / 2**20 for part in ("planned", "measured"))
        cells += [f"{min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%}", f"{wall:.4g}", f"{a:,.1f}", f"{b:,.1f}",
                  f"{a / b - 1:+.1%}"]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    loads = [row["measured"]["load"] for rows in told.values() for row in rows]
    print(f"\nload of the machine {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
