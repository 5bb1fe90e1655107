"""`lmkit.plan`, top to bottom."""

import json
from pathlib import Path

from rich.console import Console

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.parallel.devices import setup_cpu
from lmkit.plan.advice import advice
from lmkit.plan.calibrate import calibrate
from lmkit.plan.estimate import estimate
from lmkit.plan.show import as_plain, show

console = Console(highlight=False)


def plan(experiment: Experiment) -> int:
    """Prints the plan. 0 where it fits, else 1. With plan.calibrate it learns from a run, and plans nothing."""
    if experiment.plan.calibrate:
        calibrate(experiment, console)
        return 0
    setup_cpu(experiment.run)
    found = estimate(experiment)
    changes = [] if found.fits else advice(found)
    target = experiment.plan.json
    if target:
        text = json.dumps(as_plain(found, changes), indent=1)
        if target == "-":
            print(text)
            return 0 if found.fits else 1
        try:
            Path(target).write_text(text + "\n")
        except OSError as error:
            raise ConfigError(f"plan.json={target} cannot be written: {error.strerror}; choose another file") from error
    show(console, found, changes)
    return 0 if found.fits else 1
