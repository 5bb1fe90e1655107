"""lm-eval's tasks on one model: run, told, and kept with every answer."""

import itertools
import time
from typing import Any, NamedTuple

from lmkit import hosts
from lmkit.config.experiment import Experiment
from lmkit.evaluate.contamination import Found, find_items
from lmkit.evaluate.perturb import Changed, perturb_tasks
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
        """lm-eval's figures by task and metric."""
        every = figures_of(self.results)
        return {task: {name: Figure(*one) for name, one in row.items()} for task, row in every.items()}


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
    return Suite(results, items, truncated, time.perf_counter() - began, changed, found)


def notes_of(suite: Suite) -> list[str]:
    """What the user should know beside the figures."""
    notes = []
    if suite.truncated:
        notes.append(f"{suite.truncated:,} requests were longer than the model: cut from the left")
    for task, one in suite.found.items():
        short = f"; {one.short:,} too short to tell" if one.short else ""
        notes.append(f"{task}: {len(one.found):,} of {one.total:,} items are in evaluate.against{short}")
    return notes
