"""`lmkit.evaluate`, top to bottom."""

import time
from pathlib import Path
from typing import Any

import jax

from lmkit import hosts
from lmkit.config.experiment import Experiment, to_plain
from lmkit.console import console, duration
from lmkit.core.environment import environment, versions
from lmkit.core.evaluation import write_confusion
from lmkit.evaluate.own import Judged, judge
from lmkit.evaluate.show import show_figures
from lmkit.evaluate.subject import results_folder
from lmkit.files import private_files, write_json
from lmkit.metrics import format_confusion
from lmkit.metrics.bootstrap import Figure
from lmkit.redact import redact
from lmkit.weights import SavedModel, open_model


def evaluate(experiment: Experiment) -> int:
    """Scores what `experiment.evaluate` asks for, shows it, and writes results, samples, receipt and report."""
    with hosts.session(experiment.hosts, experiment.run, "evaluate"), private_files(int(experiment.run.umask, 8)):
        console.quiet = not hosts.is_first()
        plain = to_plain(experiment)
        del plain["hosts"]
        hosts.agree("the experiment", plain | {"versions": versions()})
        return _own(experiment, open_model(experiment.init_from))


def _own(experiment: Experiment, model: SavedModel) -> int:
    began = time.perf_counter()
    judged = judge(experiment, model)
    folder = results_folder(experiment, model)
    name, confusion = experiment.evaluate.split.name, judged.confusion()
    if hosts.is_first():
        for note in judged.notes:
            console.print(note, style="yellow", markup=False)
        show_figures({name: judged.figures}, experiment.evaluate.confidence)
        if confusion is not None:
            console.print(format_confusion(confusion, judged.task.labels), markup=False)
            write_confusion(folder / "confusion.json", confusion, judged.task.labels)
        write_json(folder / "results.json", results_of({name: judged.figures}, _count(judged), experiment))
        facts = {"data": judged.task.facts, "examples": judged.examples.what, "notes": judged.notes}
        write_receipt(folder, experiment, model, facts, time.perf_counter() - began)
    console.print(f"{_count(judged)[name]:,} {judged.examples.what} in {duration(time.perf_counter() - began)}")
    console.print(f"results {folder}", soft_wrap=True, markup=False)
    return 0


def _count(judged: Judged) -> dict[str, int]:
    return {judged.task.batches.evaluated: sum(judged.examples.sizes)}


def results_of(figures: dict[str, dict[str, Figure]], counts: dict[str, int], experiment: Experiment) -> dict[str, Any]:
    """results.json of figures that lm-eval has not computed, in its layout."""
    results = {}
    for name, every in figures.items():
        row: dict[str, Any] = {"name": name, "alias": name, "sample_len": counts[name]}
        for metric, one in every.items():
            row |= {f"{metric},none": one.value, f"{metric}_stderr,none": one.stderr}
            row[f"{metric}_interval,none"] = [one.low, one.high]
        results[name] = row
    number = {name: {"original": count, "effective": count} for name, count in counts.items()}
    config = {"model": "lmkit", "model_args": experiment.init_from, "limit": experiment.evaluate.limit or None,
              "bootstrap_iters": experiment.evaluate.resamples, "random_seed": experiment.run.seed}  # fmt: skip
    return {"results": results, "n-samples": number, "config": config, "date": time.time()}


def write_receipt(folder: Path, experiment: Experiment, model: SavedModel, facts: dict, seconds: float) -> None:
    """What the figures depend on."""
    device = jax.devices()[0]
    receipt = environment() | {
        "model": {"init_from": experiment.init_from, "path": str(model.source.path), "config": to_plain(model.config)},
        "evaluate": to_plain(experiment.evaluate),
        "seed": experiment.run.seed,
        "mesh": to_plain(experiment.mesh),
        "devices": {"kind": device.device_kind, "count": jax.device_count(), "hosts": jax.process_count()},
        "seconds": round(seconds, 3),
        **facts,
    }
    write_json(folder / "receipt.json", redact(receipt))
