"""The folder of a corpus in the making: one process at a time, one set of settings, counts that survive kills."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmkit.config.base import ConfigError
from lmkit.config.experiment import differing
from lmkit.files import write_json


@contextlib.contextmanager
def claimed(out: Path, made_from: dict[str, Any]) -> Iterator[Path]:
    """The folder out/work, ours alone. Raises ConfigError where another process has it, or it was made otherwise."""
    work = out / "work"
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise ConfigError(f"cannot write {work}: {error.strerror}; set prepare.out= or data.cache_dir=") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another process is at work in {out}: wait for it, or set prepare.out=") from error
        check_same(work / "made_from.json", made_from, out)
        yield work


def check_same(note: Path, made_from: dict[str, Any], out: Path) -> None:
    """Writes the note, or compares it. Raises ConfigError where a folder was begun with something else."""
    if not note.exists():
        write_json(note, made_from)
    elif rows := differing(json.loads(note.read_text()), made_from):
        name, old, new = rows[0]
        raise ConfigError(
            f"{out} was begun with {name}={old}, now it is {new}: set prepare.out= to another, or delete it"
        )


def counts_of(folder: Path, labels: list[str]) -> list[tuple[str, dict[str, int]]]:
    """(label, counts summed over all tasks) of each labelled step, as the tasks of a stage noted them."""
    sums: list[dict[str, int]] = [{} for _ in labels]
    for path in sorted((folder / "stats").glob("*.json")):
        for total, step in zip(sums, json.loads(path.read_text()), strict=True):
            for name, value in step["stats"].items():
                number = value["total"] if isinstance(value, dict) else value
                total[name] = total.get(name, 0) + int(number)
    return [(label, total) for label, total in zip(labels, sums, strict=True) if label]
