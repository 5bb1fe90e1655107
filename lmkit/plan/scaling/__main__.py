"""`python -m lmkit.plan.scaling runs/ladder/*`."""

import argparse
import importlib
import os
import sys
import traceback

from lmkit.config.base import UserError
from lmkit.config.entry.streams import showing
from lmkit.config.saved import take_blocks
from lmkit.config.sections.hosts import USER_ERROR

ABOUT = """Fit loss = E + A / N^a + B / D^b to finished runs (N parameters, D tokens seen, the loss on held-out text at
the end), tell how sure that is, and how well it predicts the largest run, which is left out of the fit."""
NOTES = """The runs must have learned the same task on the same data with the same tokenizer, each with its own schedule
down to its end, in several sizes and several lengths. N counts no embedding tables (Kaplan et al. 2020, section 2.1):
in small models they are most of the parameters and do little of the work. Details: docs/plan.md."""


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: give a number from 0")
    return int(text)


def options(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lmkit.plan.scaling", description=ABOUT, epilog=NOTES)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run directory, glob of some, or a .json that --json wrote")
    add("--hold-out", type=int, metavar="NUMBER", help="so many runs of the most FLOPs are left out of the fit and "
        "predicted (default: 1 of 7 runs or more)")  # fmt: skip
    add("--count", choices=["non_embedding", "total"], default="non_embedding", help="what N counts "
        "(default: %(default)s; total is what Hoffmann et al. 2022 took)")  # fmt: skip
    add("--flops", type=float, nargs="+", default=[], metavar="FLOPS", help="budgets to tell the best N and D for")
    add("--draws", type=int, default=400, help="fits to reweighted runs, for the intervals (default: %(default)s)")
    add("--seed", type=_seed, default=0, help="of those draws (default: %(default)s)")
    add("--json", metavar="FILE", help="write every figure; - prints it in place of the tables")
    add("--draw", metavar="FILE", nargs="+", default=[], help="a picture: .svg, or .html with the tables")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 for what the user can mend, told in one line."""
    chosen = options(take_blocks(sys.argv[1:] if argv is None else argv))
    # L-BFGS-B factorises matrices of ten rows: BLAS threads that wait for each other make it up to 25 times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        return importlib.import_module("lmkit.plan.scaling.main").scaling(chosen)
    except UserError as error:
        if os.environ.get("LMKIT_DEBUG") == "1":
            traceback.print_exc()
        print(f"lmkit.plan.scaling: {error}", file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    with showing():
        sys.exit(main())
