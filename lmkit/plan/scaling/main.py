"""`lmkit.plan.scaling`, top to bottom."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from lmkit.config.base import ConfigError
from lmkit.plan.scaling.fit import NUM_PARAMS, Points, fit
from lmkit.plan.scaling.picture import draw_page, draw_svg
from lmkit.plan.scaling.result import Result, as_plain
from lmkit.plan.scaling.runs import FinishedRun, read_runs
from lmkit.plan.scaling.show import show


def scaling(chosen: argparse.Namespace) -> int:
    """Reads, fits, prints and draws. Raises ConfigError for what the user can mend."""
    check(chosen)
    runs = read_runs(chosen.runs)
    fitted, held_out = divide(runs, chosen.hold_out)
    found = fit(points_of(fitted, chosen.count), draws=chosen.draws, seed=chosen.seed)
    result = Result(found, fitted, held_out, chosen.count, chosen.flops, chosen.seed)
    text = json.dumps(as_plain(result), indent=1)
    if chosen.json == "-":
        print(text)
    else:
        show(Console(highlight=False), result)
    if chosen.json not in (None, "-"):
        write(Path(chosen.json), text + "\n")
    for name in chosen.draw:
        write(Path(name), draw_svg(result) if name.lower().endswith(".svg") else draw_page(result))
    return 0


def check(chosen: argparse.Namespace) -> None:
    """Raises ConfigError for options that cannot be."""
    for name in chosen.draw:
        if not name.lower().endswith((".svg", ".html")):
            raise ConfigError(f"--draw {name}: a picture is a .svg, or a .html with the tables")
    if chosen.draws < 20:
        raise ConfigError(f"--draws {chosen.draws}: 90 % intervals need 20 or more; 400 are the default")
    if chosen.hold_out is not None and chosen.hold_out < 0:
        raise ConfigError(f"--hold-out {chosen.hold_out}: it is a number of runs, 0 or more")
    if any(flops <= 0 for flops in chosen.flops):
        raise ConfigError(f"--flops {' '.join(f'{flops:g}' for flops in chosen.flops)}: a budget is above 0")


def divide(runs: Sequence[FinishedRun], number: int | None) -> tuple[list[FinishedRun], list[FinishedRun]]:
    """(those to fit, those of the most FLOPs, held out); `number` None: one, where enough are left for the law."""
    if number is None:
        number = int(len(runs) - 1 > NUM_PARAMS)
    left = max(len(runs) - number, 0)
    return list(runs[:left]), list(runs[left:])


def points_of(runs: Sequence[FinishedRun], count: str) -> Points:
    """Runs as the law sees them."""
    rows = np.array([(getattr(run, count), run.tokens, run.loss) for run in runs], float).reshape(-1, 3)
    return Points(*rows.T)


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another file") from error
