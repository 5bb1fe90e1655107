"""`lmkit.plan`, top to bottom."""

import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from lmkit.config.base import ConfigError
from lmkit.config.checks import check_experiment
from lmkit.config.experiment import Experiment
from lmkit.cost.estimate import Estimate, estimate
from lmkit.parallel.devices import setup_cpu
from lmkit.plan.advice import advice
from lmkit.plan.calibrate import calibrate
from lmkit.plan.compiled import Compiled, compiled_plan
from lmkit.plan.search import Search, as_experiment, confirmed, search
from lmkit.plan.show import as_plain, show, show_search

console = Console(highlight=False)


def plan(experiment: Experiment) -> int:
    """Prints the plan. 0 where it fits, by the compiler where it was asked, else 1.

    With plan.calibrate it learns from a run, and plans nothing.
    """
    hardware, wanted = experiment.hardware, experiment.plan
    if wanted.calibrate:
        calibrate(experiment, console)
        return 0
    check_experiment(experiment)
    setup_cpu(experiment.run, max(hardware.devices, 1) if hardware.platform == "cpu" else 1)
    searched = _searched(experiment) if wanted.search else None
    if searched is not None:
        if wanted.json != "-" or not searched.best:
            show_search(console, searched)
        if not searched.best:
            return 1
        best, compiled, reason = searched.best[0].estimate.context, searched.best[0].compiled, searched.reason
        # once more from what was asked, which tells factors that were set from calibrated ones
        found = estimate(dataclasses.replace(best.experiment, plan=wanted, hardware=hardware), best.blueprint)
        if wanted.save:
            _write("plan.save", wanted.save, as_experiment(searched.best[0]))
    else:
        found = estimate(experiment)
        compiled, reason = _compiled(found)
    fits = found.fits if compiled is None else compiled.fits(found.limit)
    changes = [] if fits else advice(found)
    if wanted.json:
        text = json.dumps(as_plain(found, changes, compiled), indent=1) + "\n"
        if wanted.json == "-":
            print(text, end="")
        else:
            _write("plan.json", wanted.json, text)
    if wanted.json != "-":
        show(console, found, changes, compiled)
    if reason:
        Console(stderr=True, highlight=False).print(f"[bold red]not compiled[/]: {escape(reason)}", soft_wrap=True)
    return 0 if fits and not reason else 1


def _write(key: str, target: str, text: str) -> None:
    try:
        Path(target).write_text(text)
    except OSError as error:
        raise ConfigError(f"{key}={target} cannot be written: {error.strerror}; choose another file") from error


def _searched(experiment: Experiment) -> Search:
    """What a search comes to, confirmed by the compiler where it was asked."""
    with console.status("searching"):
        searched = search(experiment)
    if not experiment.plan.compile:
        return searched
    with console.status(f"compiling the best {experiment.plan.confirm}"):
        return confirmed(searched, experiment.plan.confirm)


def _compiled(found: Estimate) -> tuple[Compiled | None, str]:
    """What the compiler says where it was asked, or why it cannot be."""
    if not found.context.experiment.plan.compile:
        return None, ""
    try:
        with console.status("compiling: a minute or two for the largest models"):
            return compiled_plan(found.context), ""
    except ConfigError as error:  # the mesh was checked before: there is no compiler
        return None, str(error)
