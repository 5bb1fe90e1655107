"""Builds stores: in parts, resumed after a kill, published in one step."""

import contextlib
import json
import multiprocessing
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lmkit.data.cache import make_atomically, publish
from lmkit.data.store.frame import FILES, META
from lmkit.data.store.part_writer import PART
from lmkit.files import checksums, locked, write_json

PART_BYTES = 1 << 28  # of a source's files that a part takes, at least
MOST_PARTS = 1 << 12  # of a store: those of a larger corpus are larger
# (what is being done, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]
# (folder of the build, numbers of parts, what makes one): makes them, here or elsewhere
Runner = Callable[[Path, list[int], Callable[[int], None]], None]


def one_by_one(_: Path, parts: list[int], make: Callable[[int], None]) -> None:
    """The runner of a process that works alone."""
    for part in parts:
        make(part)


def pooled(workers: int) -> Runner:
    """The runner of so many processes on this machine; 0 for one a core."""

    def run(work: Path, parts: list[int], make: Callable[[int], None]) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if (number := min(workers or cores, len(parts))) < 2:
            return one_by_one(work, parts, make)
        with ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn")) as pool:
            for _ in pool.map(make, parts):
                pass
        return None

    return run


def build_frame(
    path: Path, parts: int, make: Callable[[int, Path], None], finish: Callable[[Path, list[dict]], dict], run: Runner
) -> None:
    """A store at `path` from parts that `make(number, folder)` writes; what a killed build finished is kept.

    `finish(folder, facts of the parts)` adds files of its own and returns what meta.json says besides the parts.
    Of several processes that want the same store one builds it, and the others wait for it. Where they cannot see each
    other's locks each builds in a folder of its own, and the first to finish gives the store to all.
    """
    with locked(path) as held:
        if path.is_dir():
            return
        try:
            _build(path, _work(path, held), parts, make, finish, run)
        except Exception:
            if not path.is_dir():  # else another was faster, and has cleared up
                raise
        for folder in unfinished(path):  # of kills, and of those who come second
            shutil.rmtree(folder, ignore_errors=True)


def _work(path: Path, held: bool) -> Path:
    """Where a store is built: with a lock one folder a machine, found again after a kill; else a new one."""
    alone = "" if held else f"-{secrets.token_hex(8)}"
    return path.with_name(f".{path.name}-unfinished-{socket.gethostname()}{alone}")


def unfinished(path: Path) -> list[Path]:
    """Folders in which the store at `path` is being built, or was when its builder was killed."""
    return sorted(path.parent.glob(f".{path.name}-unfinished-*"))


def _build(
    path: Path, work: Path, parts: int, make: Callable[[int, Path], None],
    finish: Callable[[Path, list[dict]], dict], run: Runner,
) -> None:  # fmt: skip
    folders = [part_folder(work, number) for number in range(parts)]
    folders[0].parent.mkdir(parents=True, exist_ok=True)
    try:
        run(work, [n for n, one in enumerate(folders) if not (one / PART).is_file()], _MakePart(make, path, work))
    except BaseException:
        if not any(folders[0].parent.iterdir()):  # nothing that would be worth keeping
            shutil.rmtree(work, ignore_errors=True)
        raise
    found = [json.loads((one / PART).read_text()) for one in folders]
    meta = finish(work, [part.pop("facts") for part in found])
    for left in (folders[0].parent.glob(".*"), work.glob("logs")):  # of a killed build, of a cluster's jobs
        for one in left:
            shutil.rmtree(one)
    write_json(work / FILES, checksums(work, lambda name: name not in (FILES, META)), indent=None)
    write_json(work / META, meta | {"parts": [{"name": f.name} | p for f, p in zip(folders, found, strict=True)]})
    publish(work, path)


def part_folder(work: Path, number: int) -> Path:
    """Where a part of a store lies."""
    return work / "parts" / f"{number:05}"


class _MakePart(NamedTuple):
    """Makes a part, or copies it from another builder's folder where it is finished. It can be sent elsewhere."""

    make: Callable[[int, Path], None]
    path: Path
    work: Path

    def __call__(self, number: int) -> None:
        mine = part_folder(self.work, number)
        for other in unfinished(self.path):
            theirs = part_folder(other, number)
            if other != self.work and (theirs / PART).is_file():
                with contextlib.suppress(OSError):  # it was published, and is gone from there
                    make_atomically(mine, partial(shutil.copytree, theirs, dirs_exist_ok=True))
                    return
        make_atomically(mine, partial(self.make, number))
