"""The folder of a corpus in the making: one process at a time, one set of settings, counts that survive kills."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.config.experiment import differing
from lmkit.console import console
from lmkit.files import lock_file, write_json
from lmkit.redact import redact


@contextlib.contextmanager
def claimed(out: Path, made_from: dict[str, Any]) -> Iterator[Path]:
    """The folder out/work, ours alone: waits for another process that is at work there.

    Raises ConfigError where it was made otherwise, or lies on a file system without locks.
    """
    work = out / "work"
    while True:
        try:
            work.mkdir(parents=True, exist_ok=True)
            lock = (work / "lock").open("w")
        except OSError as error:
            raise ConfigError(f"cannot write {work}: {error.strerror}; set prepare.out= or data.cache_dir=") from error
        with lock:
            _lock(lock, out)
            with contextlib.suppress(FileNotFoundError):  # the one before has cleared the folder up
                if (work / "lock").stat().st_ino == os.fstat(lock.fileno()).st_ino:
                    check_same(work / "made_from.json", out / "card.json", redact(made_from), out)
                    yield work
                    return


def _lock(file: IO[str], out: Path) -> None:
    try:
        held = lock_file(file, wait=False)
    except BlockingIOError:
        console.print(f"another process cleans into {out}: waiting for it", markup=False, soft_wrap=True)
        held = lock_file(file, wait=True)
    if not held:
        raise ConfigError(
            f"{out} is on a file system without locks: set prepare.out= or data.cache_dir= to one that has"
        )


def check_same(note: Path, card: Path, made_from: dict[str, Any], out: Path) -> None:
    """Writes the note, or compares it, or the card of a finished folder, which says more than that.

    Raises ConfigError where a folder was begun with something else.
    """
    if card.is_file():
        found = read_document(card)
        begun = {key: found[key] for key in (*made_from, "earlier") if key in found}
    elif note.exists():
        begun = json.loads(note.read_text())
    else:
        write_json(note, made_from)
        return
    if rows := differing(begun, made_from):
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
