"""`lmkit.evaluate`, top to bottom."""

import itertools
import time
from pathlib import Path
from typing import Any

import jax

from lmkit import hosts
from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment, to_plain
from lmkit.console import console, duration
from lmkit.core.environment import environment, versions
from lmkit.core.evaluation import write_confusion
from lmkit.evaluate.compare import Answers, answers_of, compare, own_answers
from lmkit.evaluate.own import Judged, judge
from lmkit.evaluate.report import own_page, task_pages
from lmkit.evaluate.show import show_compared, show_figures
from lmkit.evaluate.subject import results_folder
from lmkit.evaluate.suite import Suite, notes_of, run_suite
from lmkit.files import private_files, write_json, write_text
from lmkit.harness.files import figure_row, write_results, write_samples
from lmkit.harness.tasks import Tasks, check_harness, load_tasks
from lmkit.metrics import format_confusion
from lmkit.metrics.bootstrap import Figure
from lmkit.pages.evaluation import draw_comparison, draw_evaluation
from lmkit.redact import redact
from lmkit.weights import SavedModel, open_model

Json = dict[str, Any]


def evaluate(experiment: Experiment) -> int:
    """Scores what `experiment.evaluate` asks for, shows it, and writes results, samples, receipt and report."""
    config = experiment.evaluate
    with hosts.session(experiment.hosts, experiment.run, "evaluate"), private_files(int(experiment.run.umask, 8)):
        console.quiet = not hosts.is_first()
        plain = to_plain(experiment)
        del plain["hosts"]
        hosts.agree("the experiment", plain | {"versions": versions()})
        if config.include and not config.tasks:
            raise ConfigError(f"evaluate.include={config.include} without evaluate.tasks: set evaluate.tasks=[...]")
        if config.compare and experiment.init_from:
            raise ConfigError(
                f"evaluate.compare={config.compare} with init_from={experiment.init_from}: give one of them"
            )
        tasks = load_tasks(config, config.tasks) if config.tasks else None
        models = [open_model(place) for place in config.compare or [experiment.init_from]]
        for model in models if tasks is not None else ():
            check_harness(model.config, f"init_from={model.source.path}")
        folder = results_folder(experiment, None if config.compare else models[0])
        answers = []
        for place, model in zip(config.compare or [experiment.init_from], models, strict=True):
            own = folder / f"model_{len(answers)}" if config.compare else folder
            if config.compare:
                console.print(f"[bold]{place}")
            answers.append(_one(experiment, place, model, tasks, own))
        if config.compare:
            _compare(experiment, answers, folder)
        console.print(f"results {folder}\nreport  {folder / 'report.html'}", soft_wrap=True, markup=False)
    return 0


def _one(
    experiment: Experiment, place: str, model: SavedModel, tasks: Tasks | None, folder: Path
) -> dict[str, Answers]:
    """One model: all that is written and shown of it. Returns what others are compared with."""
    began = time.perf_counter()
    if hosts.is_first():
        folder.mkdir(exist_ok=True)
    if tasks is None:
        judged = judge(experiment, place, model)
        if hosts.is_first():
            _write_own(experiment, model, judged, folder, time.perf_counter() - began)
        return own_answers(judged)
    suite = run_suite(experiment, model, tasks)
    if hosts.is_first():
        _write_suite(experiment, model, suite, folder)
    return answers_of(suite)


def _write_own(experiment: Experiment, model: SavedModel, judged: Judged, folder: Path, seconds: float) -> None:
    name, confusion = judged.task.batches.evaluated, judged.confusion()
    for note in judged.notes:
        console.print(note, style="yellow", markup=False)
    show_figures({name: judged.figures}, experiment.evaluate.confidence)
    if confusion is not None:
        console.print(format_confusion(confusion, judged.task.labels), markup=False)
        write_confusion(folder / "confusion.json", confusion, judged.task.labels)
    count = sum(judged.examples.sizes)
    console.print(f"{count:,} {judged.examples.what} in {duration(seconds)}")
    write_json(folder / "results.json", _own_results(judged.figures, name, count, experiment, model))
    facts = {"data": judged.task.facts, "examples": judged.examples.what, "notes": judged.notes}
    _write_receipt(folder, experiment, model, facts, seconds)
    note = f"{count:,} {judged.examples.what} of the split {name}"
    page = draw_evaluation(str(model.source.path), note, [own_page(judged, name)], judged.notes)
    write_text(folder / "report.html", page)


def _own_results(figures: dict[str, Figure], name: str, count: int, experiment: Experiment, model: SavedModel) -> Json:
    """results.json in lm-eval's layout."""
    row: Json = {"name": name, "alias": name, "sample_len": count}
    for metric, one in figures.items():
        row |= figure_row(metric, one)
    config = {"model": "lmkit", "model_args": {"init_from": str(model.source.path)},
              "limit": experiment.evaluate.limit or None, "bootstrap_iters": experiment.evaluate.resamples,
              "random_seed": experiment.run.seed}  # fmt: skip
    number = {name: {"original": count, "effective": count}}
    return {"results": {name: row}, "n-samples": number, "config": config, "date": time.time()}


def _write_suite(experiment: Experiment, model: SavedModel, suite: Suite, folder: Path) -> None:
    notes = notes_of(suite)
    for note in notes:
        console.print(note, style="yellow", markup=False)
    show_figures(suite.figures(), experiment.evaluate.confidence if suite.changed else 0.0)
    count = sum(len(items) for _, items in suite.items.values())
    console.print(f"{count:,} items in {duration(suite.seconds)}")
    write_results(folder, suite.results)
    write_samples(folder, suite.results["samples"])
    facts = {
        "notes": notes,
        "changed": {f"{task}, {kind}": {"items": one.items, "altered": one.altered, "changed": one.numbers}
                    for task, kinds in suite.changed.items() for kind, one in kinds.items()},
        "found": {task: {"items": sorted(one.found), "of": one.total, "short": one.short}
                  for task, one in suite.found.items()},
    }  # fmt: skip
    _write_receipt(folder, experiment, model, facts, suite.seconds)
    page = draw_evaluation(str(model.source.path), f"{count:,} items", task_pages(suite), notes)
    write_text(folder / "report.html", page)


def _compare(experiment: Experiment, answers: list[dict[str, Answers]], folder: Path) -> None:
    places, pairs = experiment.evaluate.compare, []
    for a, b in itertools.combinations(range(len(answers)), 2):
        pairs.append((places[a], places[b], compare(answers[a], answers[b], experiment.evaluate, experiment.run.seed)))
    if not hosts.is_first():
        return
    show_compared(pairs, experiment.evaluate.confidence)
    rows = [{"a": a, "b": b, "tasks": [one._asdict() for one in tasks]} for a, b, tasks in pairs]
    write_json(folder / "results.json", {"compared": rows})
    note = f"intervals of {experiment.evaluate.confidence:.0%}, by a paired bootstrap over items"
    write_text(folder / "report.html", draw_comparison("Comparison", note, pairs))


def _write_receipt(folder: Path, experiment: Experiment, model: SavedModel, facts: Json, seconds: float) -> None:
    """What the figures depend on."""
    device = jax.devices()[0]
    receipt = environment() | {
        "model": {"path": str(model.source.path), "form": model.source.form.name, "config": to_plain(model.config)},
        "evaluate": to_plain(experiment.evaluate),
        "seed": experiment.run.seed,
        "mesh": to_plain(experiment.mesh),
        "devices": {"kind": device.device_kind, "count": jax.device_count(), "hosts": jax.process_count()},
        "seconds": round(seconds, 3),
        **facts,
    }
    write_json(folder / "receipt.json", redact(receipt))
