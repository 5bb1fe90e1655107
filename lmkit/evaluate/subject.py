"""What is judged: a model and the data of its own task; and where the results go."""

import dataclasses
import time
from pathlib import Path

from lmkit import hosts, interop
from lmkit.config.base import ConfigError
from lmkit.config.checks import check_experiment
from lmkit.config.documents import read_document
from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment, differing, to_plain
from lmkit.config.paths import cache_dir
from lmkit.config.saved import RUN_FILE, read_experiment, read_tokenizer
from lmkit.config.sections.lora import LoraConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.console import PrepareProgress
from lmkit.core.task import Task, changed_data, prepare_task
from lmkit.data.cache import make_once, open_cache, place_of
from lmkit.data.prepare_records import needs_text
from lmkit.files import shared_files
from lmkit.weights import Form, SavedModel, start_tokenizer

_OWN = ("data", "objective", "tokenizer")  # sections that say what a model's own task is
_WHOLE = ("data.source", "data.paths", "data.mixture", "data.heldout_paths")  # other data, not the run's with a change


def own_experiment(experiment: Experiment, model: SavedModel) -> Experiment:
    """The experiment whose held-out data a model is judged by: its run's, with what was said here instead.

    What is no run has no data of its own: it takes those said here. Raises ConfigError where none are.
    """
    plain = to_plain(compose([]))
    said = [name for name, _, _ in differing({s: plain[s] for s in _OWN}, {s: to_plain(experiment)[s] for s in _OWN})]
    others = any(name.startswith(_WHOLE) for name in said)
    home = model.source.home
    is_run = model.source.form is Form.run and (home / RUN_FILE).is_file()
    if not others and not is_run:
        raise ConfigError(
            f"init_from={experiment.init_from} is no run with data of its own: set data= and data.paths=, or "
            f"evaluate.tasks="
        )
    base = read_experiment(home) if is_run else experiment
    sections = {}
    for section in _OWN:
        here = getattr(experiment, section)
        mine = {name.split(".")[1] for name in said if name.startswith(f"{section}.")}
        if (section == "data" and others) or base is experiment:
            sections[section] = here
        else:
            sections[section] = dataclasses.replace(
                getattr(base, section), **{name: getattr(here, name) for name in mine}
            )
    shared = {name: getattr(experiment, name) for name in ("mesh", "hosts", "evaluate", "init_from")}
    train = base.train
    if experiment.train.batch_size != plain["train"]["batch_size"]:
        train = dataclasses.replace(train, batch_size=experiment.train.batch_size, accumulate_steps=1)
    run = dataclasses.replace(experiment.run, seed=base.run.seed)
    made = dataclasses.replace(
        base, **sections, **shared, model=model.config, train=train, run=run, lora=LoraConfig()
    )  # fmt: skip
    check_experiment(made)  # what was said, not what is read of a tokenizer below
    if not experiment.tokenizer.path:
        made = dataclasses.replace(made, tokenizer=_tokenizer(experiment, model))
    if made.tokenizer.kind is TokenizerKind.init and needs_text(made.objective.kind, made.model):
        raise ConfigError(
            f"init_from={experiment.init_from} has no tokenizer.json: give the model's with tokenizer=file "
            f"tokenizer.path="
        )
    return made


def _tokenizer(experiment: Experiment, model: SavedModel) -> TokenizerConfig:
    """That of the model; of a .gguf file written out as a tokenizer.json."""
    source = model.source
    if source.form is Form.run:
        return read_tokenizer(source.home)
    if source.form is Form.folder:
        init = TokenizerConfig(kind=TokenizerKind.init)
        return start_tokenizer(init, experiment.init_from) if (source.path / "tokenizer.json").is_file() else init
    inner, _, ends = interop.read_gguf_tokenizer(source.path)
    cache = place_of(open_cache(experiment.data.cache_dir), "tokenizers", ["gguf", inner.to_str()])
    make_once(cache, lambda folder: inner.save(str(folder / "tokenizer.json")))
    end = inner.id_to_token(ends[0]) if ends else TokenizerConfig().end_token
    return TokenizerConfig(kind=TokenizerKind.file, path=str(cache / "tokenizer.json"), end_token=str(end))


def own_task(experiment: Experiment, model: SavedModel) -> tuple[Task, list[str]]:
    """The prepared data of `own_experiment`, and what is worth telling."""
    showing = PrepareProgress()
    with shared_files():
        task = hosts.first_where_shared(
            cache_dir(experiment.data.cache_dir), lambda: prepare_task(experiment, showing)
        )  # fmt: skip
    showing.finish()
    hosts.agree("the data", task.facts)
    task.batches.evaluated = experiment.evaluate.split.name
    notes, receipt = list(task.notes), model.source.home / "receipt.json"
    if model.source.form is Form.run and receipt.is_file():
        before = read_document(receipt).get("data", {})
        notes += [
            f"the data are not those that the run learned from: {name} of {part!r} has changed"
            for part, name, _, _ in changed_data(before if isinstance(before, dict) else {}, task.facts)
        ]
    return task, notes


def results_folder(experiment: Experiment, model: SavedModel | None) -> Path:
    """Where the results go: as asked, else a new folder in the run, or in ./evaluations. Made on process 0."""
    now = time.strftime("%Y-%m-%d_%H-%M-%S")
    if experiment.evaluate.out:
        folder = Path(experiment.evaluate.out).expanduser()
    elif model is not None and model.source.form is Form.run:
        folder = model.source.home / "evaluations" / now
    else:
        folder = Path("evaluations") / (model.source.path.stem if model else "compared") / now
    folder = Path(hosts.share("evaluate.out", str(folder.absolute())))
    if hosts.is_first():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"evaluate.out={folder}: {error.strerror}; choose another") from error
    return folder
