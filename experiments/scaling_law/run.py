"""A ladder of tiny models, one after the other, and the law that they follow.

    python experiments/scaling_law/run.py                    # the ladder, then the law
    python experiments/scaling_law/run.py --show             # the commands alone
    python experiments/scaling_law/run.py --ladder 2x20,4x5 optim.learning_rate=0.005

A rung is DEPTHxRATIO: everything else follows from the depth and the tokens for each parameter of a matrix. Runs that
are finished are not repeated, and one that was broken off goes on where it was. Further words are keys for all runs.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

BASE_DEPTH, BASE_RATE = 2, 1e-2  # the rate was chosen at this depth
HEAD, CONTEXT, VOCABULARY = 16, 128, 257
# Rows of a step, for all: how many are worth their tokens depends on the loss that is reached, not on the size (Kaplan
# et al. 2020, section 5.1), and at these losses it is few.
BATCH = 4
# The largest is left out of the fit. Sizes share ratios and differ in them, so that both exponents can be told apart.
LADDER = "2x20,2x60,2x180,3x10,3x30,4x3,4x10,5x2,6x3"
START_FLOPS = 4e11  # what starting, compiling and evaluating cost in FLOPs not done meanwhile: for the ETA alone


class Rung(NamedTuple):
    """A model and its run, from one dial: the depth. `ratio`: training tokens for each parameter of a matrix."""

    depth: int
    ratio: float

    @property
    def name(self) -> str:
        return f"depth{self.depth}_x{self.ratio:g}"

    @property
    def heads(self) -> int:
        """One for each layer, all of the same size: more of them, not larger ones, make a model wider."""
        return self.depth

    @property
    def width(self) -> int:
        """In proportion to the depth (Kaplan et al. 2020, section 3.1: the shape hardly matters, the size does)."""
        return HEAD * self.heads

    @property
    def matrices(self) -> int:
        """Parameters of attention (4 width^2) and the MLP (8 width^2) of all layers: they grow as depth^3."""
        return 12 * self.depth * self.width**2

    @property
    def steps(self) -> int:
        return -(-round(self.ratio * self.matrices) // (BATCH * CONTEXT))

    @property
    def flops(self) -> float:
        """Of the whole run: 6 a parameter and token, and attention."""
        token = 6 * (self.matrices + VOCABULARY * self.width) + 6 * self.depth * self.width * CONTEXT
        return float(token * self.steps * BATCH * CONTEXT)

    def keys(self) -> list[str]:
        """What the depth sets. Rates as muP (Yang et al. 2022, table 3, Adam): 1/width for hidden matrices and the
        head, none for embeddings and norms."""
        factor = BASE_DEPTH / self.depth
        return [
            "+experiment=scaling_law", f"run.name={self.name}", f"model.num_layers={self.depth}",
            f"model.num_heads={self.heads}", f"model.embed_dim={self.width}", f"train.batch_size={BATCH}",
            f"train.steps={self.steps}", f"optim.warmup_steps={max(self.steps // 10, 1)}",
            f"optim.learning_rate={BASE_RATE}", f"+optim.rates={{*.kernel:{factor:.6g},head:{factor:.6g}}}",
        ]  # fmt: skip


def ladder(text: str) -> list[Rung]:
    """DEPTHxRATIO,... as typed; the cheapest first."""
    rungs = set()
    for word in text.split(","):
        depth, _, ratio = word.partition("x")
        try:
            one = Rung(int(depth), float(ratio))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r}: a rung is DEPTHxRATIO, such as 4x20") from None
        if one.depth < 1 or one.ratio <= 0:
            raise argparse.ArgumentTypeError(f"{word!r}: the depth is 1 or more, and the ratio above 0")
        rungs.add(one)
    return sorted(rungs, key=lambda one: one.flops)


def finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    file = folder / "summary.json"
    return file.is_file() and json.loads(file.read_text()).get("status") == "finished"


def cpu_seconds() -> float:
    """Of the runs so far: what a shared machine says of their cost."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def climb(rungs: list[Rung], out: Path, more: list[str]) -> list[Path]:
    """Trains what is not finished, and returns the folders. Ends the program where a run fails."""
    folders, began, done, logs = [], time.perf_counter(), 0.0, out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    todo = {one.name: one.flops + START_FLOPS for one in rungs if not finished(out / one.name)}
    print(f"{len(rungs)} runs, {len(rungs) - len(todo)} of them finished; {sum(todo.values()):.1e} FLOPs to do")
    for number, one in enumerate(rungs, 1):
        folders.append(folder := out / one.name)
        if one.name not in todo:
            continue
        left = (
            f"ETA {(time.perf_counter() - began) / done * sum(todo.values()) / 60:.1f} min" if done else "ETA unknown"
        )
        print(f"run {number} of {len(rungs)}: depth {one.depth}, {one.matrices:,} parameters in matrices, "
              f"{one.steps:,} steps of {BATCH} x {CONTEXT}; {left}", flush=True)  # fmt: skip
        with (logs / f"{one.name}.log").open("a") as log:
            words = [sys.executable, "-m", "lmkit.train", *one.keys(), f"run.dir={folder}", *more]
            start, cpu = time.perf_counter(), cpu_seconds()
            status = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT).returncode
        if status:
            raise SystemExit(f"run {one.name} ended with status {status}: see {logs / one.name}.log")
        summary = json.loads((folder / "summary.json").read_text())
        print(f"  held-out loss {summary['eval/loss']:.4f} in {time.perf_counter() - start:.0f} s "
              f"({cpu_seconds() - cpu:.0f} s of CPU time)", flush=True)  # fmt: skip
        done += todo.pop(one.name)
    return folders


def main() -> None:
    """The ladder, then the law."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="keys for all runs")
    parser.add_argument("--ladder", type=ladder, default=LADDER, metavar="DEPTHxRATIO,...", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling_law"), help="folder of the runs")
    parser.add_argument("--show", action="store_true", help="print the commands, and run nothing")
    arguments = parser.parse_args()
    if arguments.show:
        for one in arguments.ladder:
            print(
                shlex.join(
                    ["python", "-m", "lmkit.train", *one.keys(), f"run.dir={arguments.out / one.name}", *arguments.keys]
                )
            )
        return
    folders = climb(arguments.ladder, arguments.out, arguments.keys)
    law = [sys.executable, "-m", "lmkit.plan.scaling", *map(str, folders), "--json", str(arguments.out / "law.json")]
    raise SystemExit(subprocess.run([*law, "--draw", str(arguments.out / "law.svg")]).returncode)


if __name__ == "__main__":
    main()
