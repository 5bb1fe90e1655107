"""The run directory: who owns it, what it was made with, and whether this run may continue it."""

import contextlib
from pathlib import Path
from typing import IO, Any

import yaml

from lmkit import hosts
from lmkit.config.base import ConfigError, free_keys
from lmkit.config.documents import read_document
from lmkit.config.experiment import Experiment, differing, to_plain
from lmkit.config.sections.data import SourceConfig
from lmkit.core.environment import versions
from lmkit.core.task import changed_data
from lmkit.files import lock_file, shared_files, write_json, write_text
from lmkit.redact import redact


class RunDir:
    """A run directory, locked for this process until it ends; of many processes the first locks it and writes."""

    def __init__(self, experiment: Experiment):
        if "://" in experiment.run.dir:
            raise ConfigError(
                f"run.dir={experiment.run.dir}: a run directory is a local path (a mounted bucket will do)"
            )
        self.path = Path(experiment.run.dir).expanduser().absolute()
        self.notes: list[str] = []
        self._lock: IO[str] | None = None
        if hosts.is_first():
            self._lock = self._take()
        self.resumed = bool(hosts.share("resumed", "yes" if self._lock and self._check_same(experiment) else ""))
        hosts.check_shared("run.dir", self.path)

    def _take(self) -> IO[str]:
        make_run_dir(self.path)
        try:
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            lock_file(lock, wait=False)
        except BlockingIOError as error:
            raise ConfigError(f"run.dir={self.path} is in use by another process; stop it or choose another") from error
        return lock

    def begin(self, experiment: Experiment) -> None:
        """Makes it this experiment's: once its data are read, so that a mistake in them leaves nothing behind."""
        if not hosts.is_first():
            return
        write_text(self.path / "config.yaml", yaml.safe_dump(redact(to_plain(experiment)), sort_keys=False))

    def _check_same(self, experiment: Experiment) -> bool:
        """Whether there is a run to continue. Raises ConfigError where it is another experiment's."""
        file = self.path / "config.yaml"
        if not file.is_file():
            others = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if others:
                raise ConfigError(
                    f"run.dir={self.path} is not empty and not a run ({others[0]} ...); choose another run.dir="
                )
            return False
        rows = differing(redact(read_document(file)), redact(to_plain(experiment)))
        # What adapters are of may have moved: weights/start.py checks that it is the same.
        free = free_keys(Experiment) | free_keys(type(experiment.model), "model.")
        free |= {"init_from"} if experiment.lora.rank else set()
        stays = tuple(f"{name}." for name in free)  # keys of dictionaries
        bad = [row for row in rows if row[0] not in free and not row[0].startswith(stays) and not _newer_key(*row)]
        if bad:
            shown = ", ".join(f"{name} ({old!r} there, {new!r} here)" for name, old, new in bad[:6])
            more = f" and {len(bad) - 6} more" if len(bad) > 6 else ""
            raise ConfigError(
                f"run.dir={self.path} is of another experiment: {shown}{more}; use its values or another run.dir="
            )
        for name, old, new in rows:
            if name == "train.steps":
                self.notes.append(
                    f"train.steps was {old} and is {new}: the learning-rate schedule follows the new value"
                )
        return True

    def check_data(self, facts: dict[str, Any]) -> None:
        """Raises ConfigError where the data of a resumed run are not those that it began with.

        `facts` are a task's: by part the hashes of texts, records and tokenizer, the classes, the order's format.
        """
        before = self.read_json("receipt.json").get("data", {}) if self.resumed and hosts.is_first() else {}
        if changed := changed_data(before, facts):
            shown = ", ".join(
                f"{part}: {name} ({_short(then)} there, {_short(now)} here)" for part, name, then, now in changed
            )
            raise ConfigError(
                f"run.dir={self.path}: the data are not those that this run began with: {shown}; put them back, or "
                f"choose another run.dir="
            )
        for part, then in before.items():
            now = facts.get(part, {}).get("mixture")
            if now and then.get("mixture", {}).get("format", 1) != now["format"]:
                self.notes.append(
                    f"data {part!r}: lmkit deals the rows of a mixture in another order since this run began; the rows "
                    f"from here on are not those it would have had"
                )

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Replaces a file in one step, without secrets; of many processes the first does."""
        if hosts.is_first():
            write_json(self.path / name, redact(value))

    def read_json(self, name: str) -> dict[str, Any]:
        """A file's contents, or {}. Raises ConfigError where it is damaged."""
        file = self.path / name
        return read_document(file) if file.is_file() else {}

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *_) -> None:
        if self._lock is None:
            return
        if not self.resumed and not (self.path / "config.yaml").exists():  # it never began
            (self.path / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        self._lock.close()


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def make_run_dir(path: Path) -> None:
    """A folder with the modes of run.umask in folders with those of the process. Raises ConfigError if it cannot."""
    try:
        with shared_files():
            path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write run.dir={path}: {error.strerror}; choose another with run.dir=")


def _newer_key(name: str, old: Any, new: Any) -> bool:
    """Whether a key is at its default and was not there yet when the run began."""
    default = to_plain(Experiment())
    words = name.split(".")
    if words[:2] == ["data", "mixture"]:
        default, words = to_plain(SourceConfig()), words[-1:]
    for part in words:
        default = default.get(part) if isinstance(default, dict) else None
    return old == "(absent)" and new == default


def check_same(experiment: Experiment) -> None:
    """Raises ConfigError where not all processes run the same experiment with the same versions."""
    plain = to_plain(experiment)
    del plain["hosts"], plain["run"]["dir"]  # that of '' has the time in its name
    hosts.agree("the experiment", plain | {"versions": versions()})
