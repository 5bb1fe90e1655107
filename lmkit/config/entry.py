"""The way in for every verb: Hydra composes, the tree becomes one typed `Experiment`, the verb gets it.

A verb's code is named by a string and imported only after the configuration has passed: a user's mistake
costs no import of jax, and `--help` answers at once.
"""

import dataclasses
import errno
import importlib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkit.config.base import ConfigError, UserError, keys_of, nearest
from lmkit.config.experiment import Experiment
from lmkit.config.families import MODEL_SCHEMAS
from lmkit.config.hardware import sized
from lmkit.config.hosts import USER_ERROR, local_place
from lmkit.config.local import run_local
from lmkit.config.paths import conf_dir, options_of
from lmkit.config.sweep import JobEnded, is_elsewhere, send_back

if TYPE_CHECKING:
    from omegaconf import DictConfig

GROUPS = ("model", "data", "tokenizer", "objective", "optim", "mesh", "checkpoint", "tracker", "hardware")
LITERAL = "generate.prompt"  # text with commas, quotes and braces, which Hydra would take for its own


def register(words: Iterable[str] = ()) -> None:
    """Puts the schemas into Hydra's store, and the hardware that `words` name by its number, such as h100_64.

    Called by the entries; importing has no effects.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="experiment_schema", node=Experiment)
    for name, schema in MODEL_SCHEMAS.items():
        store.store(group="model", name=name, node=schema)
    for word in words:
        group, _, options = word.partition("=")
        for option in options.split(",") if group == "hardware" else ():
            if entry := sized(option):
                store.store(group="hardware", name=option, node=entry)


def run_verb(
    verb: str, target: str, about: str, argv: list[str] | None = None, *, reads: tuple[str, ...] = (),
    many: bool = False,
) -> int:  # fmt: skip
    """Composes the experiment from the command line and calls `target` ("module:function") with it.

    `reads`: the keys (or starts of them) that a verb reads which takes its model from `init_from`: it has no
    run.dir and no model.* keys. `many`: whether the verb can run as many processes (hosts.*).

    Returns the exit status: 0, the verb's own, or 2 for a mistake of the user's, told in one line
    (a traceback too with LMKIT_DEBUG=1).
    """
    argv = sys.argv[1:] if argv is None else argv
    if any(a in ("-h", "--help") for a in argv):
        print(help_text(verb, about, reads))
        return 0
    debug = os.environ.get("LMKIT_DEBUG") == "1"
    try:
        return _compose_and_call(verb, target, argv, bool(reads), many)
    except KeyboardInterrupt:
        print(f"\nlmkit.{verb}: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        message = explain(error)
        if debug or message is None:
            traceback.print_exc()
        if message is not None:
            print(f"lmkit.{verb}: {message}", file=sys.stderr)
        return _status_of(error, message)


def _status_of(error: Exception, message: str | None) -> int:
    if isinstance(error, JobEnded):
        return error.status
    return 1 if message is None else USER_ERROR


def _compose_and_call(verb: str, target: str, argv: list[str], from_model: bool, many: bool) -> int:
    import hydra
    from omegaconf import DictConfig

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach run_verb instead of Hydra's own printer
    register(argv)
    statuses: list[int] = []
    words = argv
    literal = dict(word.split("=", 1) for word in argv if word.startswith(LITERAL + "="))
    argv = [word for word in argv if not word.startswith(LITERAL + "=")] + (["~model"] if from_model else [])
    failures: list[Exception] = []  # kept from Hydra, which would print them its own way

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def call(composed: DictConfig) -> None:
        try:
            experiment = to_experiment(composed)
            if literal:
                experiment.generate = dataclasses.replace(experiment.generate, prompt=literal[LITERAL])
            apart = verb == "prepare" or (verb == "plan" and experiment.plan.calibrate)  # that is about a run there is
            if not from_model and not apart:
                experiment.run.dir = experiment.run.dir or _default_dir(experiment)
            if experiment.hosts.local > 1 and local_place() is None:
                statuses.append(_start_local(verb, words, experiment, many))
                return
            module, function = target.split(":")
            statuses.append(getattr(importlib.import_module(module), function)(experiment) or 0)
        except Exception as error:
            failures.append(error)
        if is_elsewhere():
            error = failures[0] if failures else None
            message = explain(error) if error else None
            send_back(error, message, _status_of(error, message) if error else statuses[-1])

    program = sys.argv
    sys.argv = [f"lmkit.{verb}", *argv]
    try:
        call()  # type: ignore[call-arg]  # Hydra passes the configuration
    finally:
        sys.argv = program
    if failures:
        raise failures[0]
    return max(statuses, default=0)


def _start_local(verb: str, argv: list[str], experiment: Experiment, many: bool) -> int:
    if not many:
        raise ConfigError(f"hosts.local={experiment.hosts.local}: lmkit.{verb} is one process; leave hosts.local out")
    return run_local(verb, argv, experiment.hosts)


def _default_dir(experiment: Experiment) -> str:
    """runs/<name>/<time>, or multirun/<name>/<time>/<job number> in a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not experiment.run.name:
        raise ConfigError(
            f"no experiment chosen: add +experiment=NAME, one of {', '.join(options_of('experiment'))}, "
            f"or give your own keys a name with run.name="
        )
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        return str(Path(hydra_config.sweep.dir) / experiment.run.name / str(hydra_config.job.num))
    return str(Path("runs") / experiment.run.name / time.strftime("%Y-%m-%d_%H-%M-%S"))


def compose(overrides: list[str]) -> Experiment:
    """The typed experiment for command-line overrides: what notebooks, tools and tests call.

    Raises ConfigError with the message the command line would print.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register(overrides)
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return to_experiment(hydra_compose("config", overrides))
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise ConfigError(message) from error


def to_experiment(composed: "DictConfig") -> Experiment:
    """The typed tree of a composed one. Raises ConfigError for keys that no schema has (`+typo=1` adds them)."""
    from omegaconf import DictConfig, OmegaConf

    def reject_unknown(node: DictConfig, prefix: str) -> None:
        schema = OmegaConf.get_type(node)
        known = {f.name for f in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else set(node)
        for name in node:
            if name not in known:
                raise ConfigError(_unknown_key(f"{prefix}{name}"))
            if isinstance(child := node._get_node(name), DictConfig):
                reject_unknown(child, f"{prefix}{name}.")

    reject_unknown(composed, "")
    experiment = OmegaConf.to_object(composed)
    assert isinstance(experiment, Experiment)
    return experiment


def _unknown_key(full: str) -> str:
    all_keys = [name for name, *_ in all_keys_of(Experiment)] + [
        *GROUPS,
        "run",
        "train",
        "generate",
        "lora",
        "export",
        "verify",
        "launch",
        "hosts",
        "plan",
        "prepare",
    ]
    for name, _, default, _ in all_keys_of(Experiment):
        if isinstance(default, dict) and full.startswith(f"{name}."):
            return f"{name} is a dictionary: give it whole, with a + before its name: '+{name}={{NAME: VALUE, ...}}'"
    if full in all_keys:
        return (
            f"{full} is a key of another family of models than the one chosen: leave it out, or choose with model=NAME"
        )
    return f"unknown key {full!r}.{nearest(full, all_keys)} All keys: python -m lmkit.train --help"


def explain(error: BaseException) -> str | None:
    """One line for what the user can mend, or None for anything else."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    if any("No space left" in str(one) or getattr(one, "errno", None) == errno.ENOSPC for one in causes):
        return "the disk is full: free space, then repeat the command with run.dir= of this run (see its checkpoints/)"
    for one in causes:
        if isinstance(one, UserError):
            return str(one)
    composing = [one for one in causes if type(one).__module__.split(".")[0] in ("hydra", "omegaconf")]
    composing.sort(key=lambda one: "full_key" not in str(one))  # the one that names the key comes first
    if composing:
        return _explain_hydra(composing[0])
    for one in causes:
        if isinstance(one, OSError) and one.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"no permission to write {one.filename}: choose another place with run.dir= or data.cache_dir="
    return None


def _explain_hydra(error: BaseException) -> str:
    text = str(error)
    if unknown := re.search(r"Key '([^']+)' (?:is )?not in|Could not override '([^']+)'", text):
        found = re.search(r"full_key: (\S+)", text)
        full = found[1] if found else unknown[1] or unknown[2]
        return _unknown_key(full)
    if option := re.search(r"(?:Could not find|In '.*': Could not find) '([\w-]+)/([\w.-]+)'", text):
        options = options_of(option[1])
        return f"no {option[1]} named {option[2]!r}.{nearest(option[2], options)} There are: {', '.join(options)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = re.search(r"full_key: (\S+)", text)
    where = f"{found[1]}: " if found else ""
    return where + (lines[0] if lines else type(error).__name__)


def all_keys_of(schema: type) -> list[tuple[str, str, Any, str]]:
    """Every key of an experiment, with each model family's own."""
    rows = [row for row in keys_of(schema) if not row[0].startswith("model.")]
    seen: set[str] = set()
    for family in MODEL_SCHEMAS.values():
        rows += [row for row in keys_of(family, "model.") if not (row[0] in seen or seen.add(row[0]))]
    return rows


TOWERS = {"model.text.": "gpt", "model.vision.": "vit"}


def help_text(verb: str, about: str, reads: tuple[str, ...] = ()) -> str:
    """Usage, experiments, groups with their options, and every key with its documentation; of `reads` those alone."""
    if reads:
        lines = [about, "", f"usage: python -m lmkit.{verb} init_from=PATH [key=value ...]", ""]
        return "\n".join([*lines, "keys (name: type = default):", *_key_lines(reads)])
    lines = [
        about,
        "",
        f"usage: python -m lmkit.{verb} +experiment=NAME [group=option ...] [key=value ...]",
        "       --cfg job prints the whole configuration; --multirun key=a,b runs a sweep;",
        "       --config-dir DIR adds a folder of your own experiments, models, ...",
        "",
        f"experiments: {', '.join(options_of('experiment'))}",
        "",
        "groups:",
        *(f"  {group:<11} {', '.join(options_of(group))}" for group in GROUPS),
        "",
        "keys (name: type = default):",
        *_key_lines(("",)),
    ]
    lines += [f"  {tower}KEY\n      a tower of clip: the keys of the family {name}" for tower, name in TOWERS.items()]
    return "\n".join(lines)


def _key_lines(starts: tuple[str, ...]) -> list[str]:
    lines = []
    for name, kind, default, doc in all_keys_of(Experiment):
        if name.startswith(starts) and not name.startswith(tuple(TOWERS)):
            shown = [getattr(d, "name", d) for d in default] if isinstance(default, list) else default
            lines.append(f"  {name}: {kind} = {shown!r}\n      {doc}")
    return lines
