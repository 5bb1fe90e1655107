"""lm-eval's tasks on one model: run, told, and kept with every answer."""

import itertools
import time
from typing import Any, NamedTuple

import numpy as np

from lmkit import hosts
from lmkit.config.experiment import Experiment
from lmkit.evaluate.contamination import Found, find_items
from lmkit.evaluate.perturb import Changed, perturb_tasks
from lmkit.harness.files import figure_row
from lmkit.harness.items import Item, items_of
from lmkit.harness.tasks import Tasks, figures_of, make_model, run_tasks
from lmkit.metrics.bootstrap import Figure
from lmkit.parallel.mesh import build_mesh
from lmkit.weights import SavedModel

Json = dict[str, Any]


class Suite(NamedTuple):
    """The tasks of one model, scored."""

    results: Json  # lm-eval's, with its samples
    items: dict[str, tuple[str, list[Item]]]  # the metric and the items of each task
    truncated: int
    seconds: float
    changed: dict[str, dict[str, Changed]]  # by task and kind of perturbation
    found: dict[str, Found]  # items of each task that are in evaluate.against

    def figures(self) -> dict[str, dict[str, Figure]]:
        """lm-eval's figures by task and metric, and ours of clean items and of changed answers."""
        return figures_of(self.results)

    def clean(self, task: str) -> list[Item]:
        """The items of a task that were not found in evaluate.against."""
        return [one for one in self.items[task][1] if one.number not in self.found[task].found]


def run_suite(experiment: Experiment, model: SavedModel, tasks: Tasks) -> Suite:
    """Runs the tasks. All of it happens on every process, in the same order."""
    config, began = experiment.evaluate, time.perf_counter()
    found: dict[str, Found] = {}
    if config.against:
        docs = {name: itertools.islice(one.eval_docs, config.limit or None) for name, one in tasks.each.items()}
        found = find_items(experiment, docs)
    mesh = build_mesh(experiment.mesh)
    with hosts.watchdog().pause("the evaluation"):
        harness = make_model(model, experiment.tokenizer, config, mesh)
        about = {"model": "lmkit", "model_args": {"init_from": str(model.source.path)}}
        results = run_tasks(harness, tasks, config, limit=config.limit, seed=experiment.run.seed, about=about)
        truncated = harness.truncated
        changed = perturb_tasks(harness, tasks, results["samples"], config, experiment.run.seed)
    items = {name: items_of(rows) for name, rows in results["samples"].items()}
    suite = Suite(results, items, truncated, time.perf_counter() - began, changed, found)
    for name, row in _more_figures(suite).items():
        results["results"][name] |= row
    return suite


def _more_figures(suite: Suite) -> dict[str, Json]:
    """In lm-eval's layout: by task the score of its clean items, and how many answers change with their wording."""
    rows: dict[str, Json] = {}
    for name in suite.found:
        scores = np.array([one.score for one in suite.clean(name)])
        if len(scores):
            error = float(scores.std(ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else float("nan")
            rows[name] = figure_row(f"{suite.items[name][0]}_clean", Figure(float(scores.mean()), error))
    for name, kinds in suite.changed.items():
        for one in kinds.values():
            for metric, figure in one.figures.items():
                rows[name] = rows.get(name, {}) | figure_row(metric, figure)
    return rows


def notes_of(suite: Suite) -> list[str]:
    """What the user should know beside the figures."""
    notes = []
    if suite.truncated:
        notes.append(f"{suite.truncated:,} requests were longer than the model: cut from the left")
    for task, one in suite.results["configs"].items():
        shots = one.get("fewshot_config") or {}
        others = (shots.get("split"), shots.get("samples"), one.get("training_split"), one.get("validation_split"))
        if one.get("num_fewshot") and one.get("test_split") and not any(others):
            notes.append(
                f"{task}: its solved examples come from the items that are scored, the item itself among them: give "
                f"the task a training_split, or fewshot_split: {one['test_split']}"
            )
    for task, one in suite.found.items():
        short = f"; {one.short:,} too short to tell" if one.short else ""
        notes.append(f"{task}: {len(one.found):,} of {one.total:,} items are in evaluate.against{short}")
    for task, kinds in suite.changed.items():
        for kind, one in kinds.items():
            if one.altered < one.items:
                notes.append(f"{task}: {kind} alters the requests of {one.altered:,} of {one.items:,} items only")
    return notes
