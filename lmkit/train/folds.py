"""Cross-validation: the same run over again, each time with another share of the data held out."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from lmkit import hosts
from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.console import console
from lmkit.train.run_dir import RunDir, make_run_dir

_SHOWN = ("eval/", "best/")


def cross_validate(experiment: Experiment, train: Callable[[Experiment], int]) -> int:
    """Runs each fold in <run.dir>/fold<n>, then writes means and standard deviations to <run.dir>/summary.json.

    A fold that is finished is not repeated, so a run that was broken off goes on where it was. Raises ConfigError where
    the data say themselves what is held out.
    """
    folds, folder = experiment.train.folds, Path(experiment.run.dir).expanduser()
    if experiment.data.heldout_paths:
        raise ConfigError(
            f"train.folds={folds} with data.heldout_paths={experiment.data.heldout_paths}: cross-validation holds out "
            f"shares of data.paths in turn; leave heldout_paths out"
        )
    if hosts.is_first():
        make_run_dir(folder.absolute())
    summaries = []
    for fold in range(folds):
        place = folder / f"fold{fold}"
        one = _fold(experiment, fold, place)
        with RunDir(one):  # raises where another experiment's folds are there
            done = _summary(place)
        if done.get("status") != "finished":
            console.rule(f"fold {fold + 1} of {folds}")
            status = train(one)
            if status:
                return status
            done = _summary(place)
        summaries.append(done)
    means = spread(summaries)
    summary = {"status": "finished", "folds": folds, **means}
    if hosts.is_first():
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    _show(means, folds)
    console.print(f"run     {folder}", soft_wrap=True)
    return 0


def _fold(experiment: Experiment, fold: int, place: Path) -> Experiment:
    folds = experiment.train.folds
    return dataclasses.replace(
        experiment,
        run=dataclasses.replace(experiment.run, dir=str(place), name=f"{experiment.run.name} fold {fold}"),
        train=dataclasses.replace(experiment.train, folds=0),
        data=dataclasses.replace(experiment.data, holdout_every=folds, fold=fold),
    )


def _summary(place: Path) -> dict[str, Any]:
    file = place / "summary.json"
    return json.loads(hosts.share("summary", file.read_text() if hosts.is_first() and file.is_file() else "{}"))


def spread(summaries: list[dict[str, Any]]) -> dict[str, float]:
    """<figure>/mean and <figure>/std (of the sample, n - 1) over the folds, of the figures that all of them have."""
    out = {}
    for name in summaries[0]:
        values = [summary.get(name) for summary in summaries]
        if name.startswith(_SHOWN) and all(isinstance(value, int | float) for value in values):
            mean = sum(values) / len(values)  # type: ignore[arg-type]
            square = sum((value - mean) ** 2 for value in values) / (len(values) - 1)  # type: ignore[operator]
            out |= {f"{name}/mean": mean, f"{name}/std": math.sqrt(square)}
    return out


def _show(means: dict[str, float], folds: int) -> None:
    table = Table(title=f"[bold]{folds} folds", box=None, title_justify="left", padding=(0, 2, 0, 0))
    for name in ("figure", "mean", "standard deviation"):
        table.add_column(name)
    for name in means:
        if name.endswith("/mean"):
            figure = name.removesuffix("/mean")
            table.add_row(figure, f"{means[name]:.4f}", f"{means[f'{figure}/std']:.4f}")
    console.print(table)
