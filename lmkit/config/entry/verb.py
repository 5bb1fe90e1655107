"""The way in for every verb: the command line becomes one typed `Experiment`, and the verb gets it.

A verb's code is named by a string and imported only after the configuration has passed: a user's mistake
costs no import of jax, and `--help` answers at once.
"""

import contextlib
import importlib
import os
import sys
import time
import traceback
from pathlib import Path

from lmkit.config.base import ConfigError
from lmkit.config.entry.compose import register, to_experiment
from lmkit.config.entry.errors import explain
from lmkit.config.entry.keys import help_text
from lmkit.config.entry.local import run_local
from lmkit.config.entry.streams import BROKEN_PIPE, showing, silence
from lmkit.config.entry.sweep import JobEnded, is_elsewhere, send_back
from lmkit.config.entry.words import quoted_words
from lmkit.config.experiment import Experiment
from lmkit.config.paths import conf_dir, options_of
from lmkit.config.saved import take_blocks
from lmkit.config.sections.hosts import USER_ERROR, local_process
from lmkit.files import write_text
from lmkit.redact import redact_text


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
    with showing(patient=verb in ("train", "prepare")):
        try:
            return _run(verb, target, about, argv, reads, many)
        except BrokenPipeError:  # as `| head` leaves it
            silence(sys.stdout)
            return BROKEN_PIPE


def _run(verb: str, target: str, about: str, argv: list[str], reads: tuple[str, ...], many: bool) -> int:
    if any(a in ("-h", "--help") for a in argv):
        print(help_text(verb, about, reads))
        return 0
    debug = os.environ.get("LMKIT_DEBUG") == "1"
    try:
        return _compose_and_call(verb, target, argv, bool(reads), many)
    except KeyboardInterrupt:
        print(f"\nlmkit.{verb}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
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
    argv = take_blocks(argv) if from_model else argv
    argv = quoted_words(argv, sweep=bool({"-m", "--multirun"} & set(argv))) + (["~model"] if from_model else [])
    failures: list[Exception] = []  # kept from Hydra, which would print them its own way

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def call(composed: DictConfig) -> None:
        sys.argv = [f"lmkit.{verb}", *words]  # Hydra has read its own; a verb prints and hands on what it was given
        try:
            experiment = to_experiment(composed)
            apart = verb == "prepare" or (verb == "plan" and experiment.plan.calibrate)  # that is about a run there is
            if not from_model and not apart:
                experiment.run.dir = experiment.run.dir or _default_dir(experiment)
            if experiment.hosts.local > 1 and local_process() is None:
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
        _redact_sweep(Path(hydra_config.sweep.dir) / "multirun.yaml")
        return str(Path(hydra_config.sweep.dir) / experiment.run.name / str(hydra_config.job.num))
    return str(Path("runs") / experiment.run.name / time.strftime("%Y-%m-%d_%H-%M-%S"))


def _redact_sweep(file: Path) -> None:
    """Hydra has written the command line of a sweep there, with its secrets."""
    with contextlib.suppress(OSError):
        text = file.read_text(encoding="utf-8")
        if (kept := "\n".join(map(_redact_line, text.split("\n")))) != text:
            write_text(file, kept)


def _redact_line(line: str) -> str:
    """A line of YAML; an item of a list is a word of the command line."""
    indent, item, word = line.partition("- ")
    return indent + item + redact_text(word) if item and not indent.strip() else redact_text(line)
