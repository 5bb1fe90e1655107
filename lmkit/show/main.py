"""`lmkit.show`: opens what is asked for and prints a row. Imports no jax."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

from lmkit.config.base import ConfigError
from lmkit.config.checks import check_experiment
from lmkit.config.documents import read_document
from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment
from lmkit.config.saved import RUN_FILE, read_experiment, read_tokenizer
from lmkit.config.sections.objective import ObjectiveKind
from lmkit.config.sections.tokenizer import TokenizerKind
from lmkit.core.task import changed_data, prepare_task
from lmkit.data.batches.windows import Batches
from lmkit.data.store.frame import Frame
from lmkit.data.tokens.tokenizer import Tokenizer
from lmkit.show.row import describe, told


class Source(NamedTuple):
    """What rows are read from."""

    experiment: Experiment
    batches: Batches
    tokenizer: Tokenizer | None
    labels: list[str]
    ends: bool  # whether the run's last step is known


def show(place: str, step: int, row: int, words: list[str], *, as_json: bool) -> None:
    """Prints a row. Raises ConfigError for one that is not there, and for data that are no longer a run's."""
    source = open_source(place, words)
    train = source.experiment.train
    if row >= train.batch_size:
        raise ConfigError(
            f"row={row}: a batch has train.batch_size={train.batch_size} rows, row=0 to {train.batch_size - 1}"
        )
    if source.ends and step >= train.steps:
        raise ConfigError(
            f"step={step}: train.steps={train.steps} has step=0 to {train.steps - 1}; give train.steps= to look further"
        )
    found = describe(source.batches, source.tokenizer, source.labels, step, row, train.batch_size)
    found = {"seed": source.experiment.run.seed, **found}
    print(json.dumps(found, ensure_ascii=False) if as_json else told(found))


def open_source(place: str, words: list[str]) -> Source:
    """A run's directory, a token store, or ('') the data of an experiment."""
    path = Path(place).expanduser()
    if not place:
        return _of_experiment(compose(words))
    if (path / RUN_FILE).is_file():
        return _of_run(path, words)
    if not (path / "meta.json").is_file():
        raise ConfigError(f"store={place}: no run and no store: it has neither {RUN_FILE} nor meta.json")
    return _of_store(path, words)


def _of_experiment(experiment: Experiment) -> Source:
    check_experiment(experiment)
    if experiment.tokenizer.kind is TokenizerKind.init:  # what finds it imports jax
        found = importlib.import_module("lmkit.weights").start_tokenizer(experiment.tokenizer, experiment.init_from)
        experiment = dataclasses.replace(experiment, tokenizer=found)
    task = prepare_task(experiment, _Progress())
    return Source(experiment, task.batches, task.tokenizer, task.labels, True)


def _of_run(path: Path, words: list[str]) -> Source:
    changes = {}
    for word in words:
        name, _, value = word.partition("=")
        if "." not in name:
            raise ConfigError(f"{word}: the run {path} says that itself; only section.key=value can change")
        changes[name] = yaml.safe_load(value)
    experiment = read_experiment(path, changes)
    if experiment.tokenizer.kind is TokenizerKind.init:
        experiment = dataclasses.replace(experiment, tokenizer=read_tokenizer(path))
    task = prepare_task(experiment, _Progress())
    receipt = path / "receipt.json"
    recorded = read_document(receipt).get("data", {}) if receipt.is_file() else {}
    for part, name, then, here in changed_data(recorded, task.facts):
        raise ConfigError(
            f"store={path}: the data of the run are no longer those it learned from: {name} of {part!r} was {then} and "
            f"is {here}; bring back its files, or give the store that it read"
        )
    return Source(experiment, task.batches, task.tokenizer, task.labels, True)


def _of_store(path: Path, words: list[str]) -> Source:
    if "splits" not in Frame(path, 0).meta:
        raise ConfigError(
            f"store={path} holds records: give the directory of a run, or +experiment=NAME without store="
        )
    experiment = compose([*words, "data.source=store", f"data.paths=[{path}]"])
    kind, mixture = experiment.objective.kind, experiment.data.mixture
    if mixture or kind is not ObjectiveKind.causal_lm:
        what = f"a mixture of {', '.join(mixture)}" if mixture else f"objective.kind={kind.name}"
        raise ConfigError(f"store={path} is read as one text with causal_lm; for {what} leave store= out")
    steps = any(word.startswith("train.steps=") for word in words)
    return _of_experiment(experiment)._replace(ends=steps)


class _Progress:
    """Says once what takes its time."""

    def __init__(self):
        self.said = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.said:
            print(f"lmkit.show: {what} ...", file=sys.stderr)
        self.said = what
