"""`lmkit.prepare`, top to bottom."""

import importlib
from typing import Any

from rich.table import Table

from lmkit.config.checks import check_experiment
from lmkit.config.experiment import Experiment
from lmkit.config.sections.objective import ON_TEXT
from lmkit.config.sections.prepare import Executor
from lmkit.console import PrepareProgress, console
from lmkit.core.task import Task, prepare_task, trained_on
from lmkit.data.sources.corpus import clean_sources, corpora
from lmkit.data.sources.text import build_sources
from lmkit.data.store.build import Runner, one_by_one
from lmkit.data.store.check import check_store
from lmkit.data.store.token_parts import find_cut
from lmkit.data.store.tokens import HELDOUT, SPLITS, TokenStore
from lmkit.data.tokens.fertility import fertility, fertility_table
from lmkit.prepare.clean import clean, need
from lmkit.prepare.page import write_page
from lmkit.weights import start_tokenizer

FERTILITY_BYTES = 2_000_000  # of held-out text


def prepare(experiment: Experiment) -> int:
    """Cleans, tokenises and stores what `train` reads with the same words. Returns the exit status."""
    progress = PrepareProgress()
    if experiment.prepare.check:
        return _check(experiment.prepare.check, progress)
    check_experiment(experiment)
    experiment.tokenizer = start_tokenizer(experiment.tokenizer, experiment.init_from)
    if experiment.objective.kind in ON_TEXT:
        _clean(experiment, progress)
    task = prepare_task(experiment, progress, _runner(experiment, progress))
    progress.finish()
    _show(experiment, task)
    return 0


def _check(place: str, progress: PrepareProgress) -> int:
    count, problems = check_store(place, progress)
    progress.finish()
    for problem in problems:
        console.print(f"[red]{problem}")
    console.print(f"{place}: {count} files, {len(problems) or 'none'} of them damaged")
    return 1 if problems else 0


def _clean(experiment: Experiment, progress: PrepareProgress) -> None:
    data, how = experiment.data, experiment.prepare
    if not data.clean.active:
        return
    sources, earlier = build_sources(data), {}
    if data.clean.finds_copies and (stores := sorted(set(data.sources("text")) - set(sources))):
        console.print(
            f"finished stores hold tokens: their texts are not compared with those of other parts: {', '.join(stores)}",
            style="yellow", soft_wrap=True,
        )  # fmt: skip
    for name, folder in corpora(data, how).items():
        clean(sources[name], data.clean, how, folder, progress, earlier)
        earlier[name] = folder
        progress.finish()
        console.print(f"corpus of {name!r}: {folder / 'report.html'}", soft_wrap=True)


def _runner(experiment: Experiment, progress: PrepareProgress) -> Runner:
    """Where the parts of a store are made: here, all cores at each in turn, or on a cluster."""
    if experiment.prepare.executor is Executor.local:
        return one_by_one
    need(experiment.prepare.executor)
    return importlib.import_module("lmkit.prepare.elsewhere").Elsewhere(experiment.prepare, progress)


def _show(experiment: Experiment, task: Task) -> None:
    """What there is now, and where."""
    table = Table("store", "split", "documents", "tokens", "bytes a token", box=None, pad_edge=False)
    data, places = experiment.data, []
    cleaned = corpora(data, experiment.prepare) if data.clean.active else {}
    fertilities = _fertilities(experiment, task)
    for name, store in getattr(task.batches, "stores", {}).items():
        places.append(f"{name}: {store.place}")
        if isinstance(store, TokenStore):
            for split in SPLITS:
                counts = store.meta["splits"][split]
                rate = f"{counts['bytes'] / max(counts['tokens'], 1):.2f}"
                table.add_row(name, split, f"{counts['documents']:,}", f"{counts['tokens']:,}", rate)
            assert task.tokenizer is not None
            if name in cleaned:
                tokens = sum(store.meta["splits"][split]["tokens"] for split in SPLITS)
                importlib.import_module("lmkit.prepare.clean.card").add_tokens(cleaned[name], tokens)
            if page := write_page(store, task.tokenizer, fertilities.get(name), cleaned.get(name)):
                places.append(f"  its page: {page}")
        else:
            for split, rows in store.rows.items():
                table.add_row(name, split, f"{len(rows):,}", "", "")
    console.print(table)
    if told := trained_on(task.facts):
        console.print(f"the tokenizer was trained on {told}", soft_wrap=True)
    for note in task.notes:
        console.print(note, soft_wrap=True)
    if fertilities:
        console.print(fertility_table(fertilities), markup=False, soft_wrap=True)
    for place in places:
        console.print(place, soft_wrap=True)


def _fertilities(experiment: Experiment, task: Task) -> dict[str, dict[str, Any]]:
    """What the tokenizer makes of held-out text, by part; of finished stores the text is not there."""
    if task.tokenizer is None or task.kind not in ON_TEXT:
        return {}
    found = {}
    for name, source in clean_sources(experiment.data, experiment.prepare).items():
        cut = find_cut(source)
        texts = source.documents(bad=lambda _: None)  # they were counted when the store was made
        sides = (one for document in texts for one in cut(document, source.held_out(document.name)))
        found[name] = fertility(task.tokenizer, (text for split, text in sides if split == HELDOUT), FERTILITY_BYTES)
    return found
