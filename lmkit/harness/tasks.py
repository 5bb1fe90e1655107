"""lm-eval's tasks, offline: found, loaded before the model is, run, and what went wrong in one line."""

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from lmkit.config.base import ConfigError, nearest
from lmkit.config.sections.evaluate import EvaluateConfig
from lmkit.config.sections.families import EncDecConfig, GPTConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.core.environment import environment
from lmkit.data.tokens.chat import load_chat_template
from lmkit.data.tokens.tokenizer import Tokenizer
from lmkit.metrics.bootstrap import Figure
from lmkit.weights import Form, SavedModel, codec_of, start_tokenizer

Json = dict[str, Any]


class Tasks(NamedTuple):
    """Tasks whose data are here, by name; and what was asked for: groups, and tasks of no group."""

    each: dict[str, Any]
    asked: list[Any]


def load_tasks(config: EvaluateConfig, names: list[str], key: str = "evaluate.tasks") -> Tasks:
    """The tasks and groups of these names, with their data; `key` is what named them.

    Raises ConfigError where lm-eval is not installed, a name is unknown, or a task's data are not to be had.
    """
    manager_type = _lm_eval(download=config.download)
    include = Path(config.include).expanduser().absolute() if config.include else None
    if include is not None and not include.is_dir():
        raise ConfigError(f"evaluate.include={config.include}: no such folder")
    manager = manager_type(include_path=str(include), include_defaults=False) if include else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = manager_type(include_path=str(include) if include else None)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(
                f"{key}: no task {name!r}.{nearest(name, manager.all_tasks)} lm-eval has "
                f"{len(manager.all_tasks):,}" + ("" if include else "; evaluate.include= adds a folder of your own")
            )
    tasks = Tasks({}, [])
    with contextlib.chdir(include or Path.cwd()):
        for name in names:
            try:
                one = manager.load([name])
                empty = [task for task, found in one["tasks"].items() if not len(found.eval_docs)]
            except Exception as error:  # of data sets, in as many kinds as there are loaders
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
                way = "give it local data_files" + ("" if config.download else ", or set evaluate.download=true")
                raise ConfigError(f"{key}: the data of {name!r} are not to be had ({reason}): {way}") from error
            if empty:
                raise ConfigError(f"{key}: {empty[0]!r} has an empty split: give it items")
            for task, found in one["tasks"].items():
                _check_shots(task, found, config.num_fewshot)
            tasks.each.update(one["tasks"])
            tasks.asked.extend([one["groups"][name]] if name in one["groups"] else one["tasks"].values())
    return tasks


def _check_shots(name: str, task: Any, asked: int) -> None:
    """Raises ConfigError where a task has fewer solved examples than are asked for."""
    shots = (task.config.num_fewshot or 0) if asked < 0 else asked
    if shots and task.OUTPUT_TYPE != "loglikelihood_rolling":
        itself = hasattr(task, "fewshot_cfg") and task.fewshot_cfg.split == task.config.test_split
        there = len(list(task.fewshot_docs() or ())) - itself  # of its own split all but the item
        if shots > there:
            raise ConfigError(
                f"evaluate.num_fewshot={shots}: {name!r} has {there:,} solved examples: ask for fewer, or give it more"
            )


def _lm_eval(*, download: bool) -> type:
    """Its TaskManager, quiet, and cut off from the hub unless it may download."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("tasks of lm-eval need its package: pip install 'lmkit[evals]'")
    offline = "0" if download else "1"
    os.environ.update(HF_HUB_OFFLINE=offline, HF_DATASETS_OFFLINE=offline, TQDM_DISABLE="1")
    for module, name in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
        if module in sys.modules:  # which read the variables when they were imported
            setattr(sys.modules[module], name, not download)
    importlib.import_module("datasets").disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return importlib.import_module("lm_eval.tasks").TaskManager


def check_harness(config: Any, where: str) -> None:
    """Raises ConfigError for a model that lm-eval's tasks cannot be put to."""
    if isinstance(config, EncDecConfig):
        raise ConfigError(
            f"{where}: an encoder-decoder reads a prompt and its answer in different halves, and tasks are scored in "
            f"one text: they need a model of the family gpt; leave evaluate.tasks out for the model's own task"
        )
    if not isinstance(config, GPTConfig):
        raise ConfigError(
            f"{where}: a {type(config).__name__} has no head for the next token; tasks need a model of the family gpt"
        )


def make_model(model: SavedModel, tokenizer: TokenizerConfig, config: EvaluateConfig, mesh: Any) -> Any:
    """The HarnessModel of a saved model. Raises ConfigError for a model without that head, or without a template."""
    module = importlib.import_module("lmkit.harness.model")
    codec, settings, template = model.codec(tokenizer), tokenizer, None
    if model.source.form is not Form.gguf and (model.source.home / "tokenizer.json").is_file():
        settings = start_tokenizer(TokenizerConfig(kind=TokenizerKind.init), str(model.source.home))
    if config.chat and (template := load_chat_template(settings)) is None:
        raise ConfigError(f"evaluate.chat=true: {model.source.path} has no chat template; leave it out")
    first = codec.bare(settings.start_token or settings.end_token) if model.source.form is Form.folder else []
    words = module.Words(codec, template, str(model.source.path), first if len(first) == 1 else [])
    merge, params = model.for_inference(mesh)
    sizes = {"max_len": config.max_len, "batch_size": config.batch_size}
    return module.HarnessModel(merge, model.config, params, mesh, words, **sizes)


def run_tasks(model: Any, tasks: Tasks, config: EvaluateConfig, *, limit: int, seed: int, about: Json) -> Json:
    """lm-eval's results of the tasks, samples among them. Every process computes the same."""
    evaluator = importlib.import_module("lm_eval.evaluator")
    commit = environment()["git"].get("commit")  # lm-eval's own look at git complains to the terminal outside of one
    with _one_process(), mock.patch.object(evaluator, "get_git_commit_hash", return_value=commit):
        found = evaluator.simple_evaluate(
            model, tasks=list(tasks.asked),
            num_fewshot=None if config.num_fewshot < 0 else config.num_fewshot, limit=limit or None,
            bootstrap_iters=config.resamples, system_instruction=config.system_prompt or None,
            apply_chat_template=config.chat, random_seed=seed, numpy_random_seed=seed, fewshot_random_seed=seed,
            torch_random_seed=None, batch_size=config.batch_size or None,
        )  # fmt: skip
    found["config"] |= about
    return found


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Without the rank that a launcher has set: lm-eval would give results on one process only."""
    rank = os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if rank is not None:
            os.environ["LOCAL_RANK"] = rank


def live_model(
    merge: Any, config: Any, mesh: Any, tokenizer: Tokenizer, max_len: int, progressed: Callable[[], None]
) -> Any:
    """The HarnessModel of a model that is trained just now; its `params` are set before each evaluation.

    `progressed()` is called for each of the pieces that it works in.
    """
    module = importlib.import_module("lmkit.harness.model")
    words = module.Words(codec_of(tokenizer, sources=False), None, "lmkit")
    quiet = {"max_len": max_len, "progress": lambda what: lambda done, total: progressed()}
    return module.HarnessModel(merge, config, None, mesh, words, **quiet)


def figures_of(results: Json) -> dict[str, dict[str, Figure]]:
    """By task and metric the value with its error and interval, where there are; of a filter with its name, if any."""
    found: dict[str, dict[str, Figure]] = {}
    for task, row in results["results"].items():
        for key, value in row.items():
            metric, comma, how = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                error = row.get(f"{metric}_stderr,{how}")
                spread = float(error) if isinstance(error, int | float) else float("nan")
                interval = row.get(f"{metric}_interval,{how}", [float("nan")] * 2)
                one = Figure(float(value), spread, *interval)
                found.setdefault(task, {})[metric if how == "none" else f"{metric}_{how}"] = one
    return found
