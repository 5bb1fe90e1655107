"""Builds stores: in parts, resumed after a kill, published in one step."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lmkit.data.cache import make_atomically, publish
from lmkit.data.store.frame import FILES, META
from lmkit.data.store.part_writer import PART
from lmkit.files import checksums, locked, write_json

# (what is being done, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]
# (folder of the build, numbers of parts, what makes one): makes them, here or elsewhere
Runner = Callable[[Path, list[int], Callable[[int], None]], None]


def one_by_one(_: Path, parts: list[int], make: Callable[[int], None]) -> None:
    """The runner of a process that works alone."""
    for part in parts:
        make(part)


def build_frame(
    path: Path, parts: int, make: Callable[[int, Path], None], finish: Callable[[Path, list[dict]], dict], run: Runner
) -> None:
    """A store at `path` from parts that `make(number, folder)` writes; what a killed build finished is kept.

    `finish(folder, facts of the parts)` adds files of its own and returns what meta.json says besides the parts.
    Of several processes that want the same store one builds it, and the others wait for it.
    """
    with locked(path):
        if not path.is_dir():
            _build(path, parts, make, finish, run)


def _build(
    path: Path, parts: int, make: Callable[[int, Path], None], finish: Callable[[Path, list[dict]], dict], run: Runner
) -> None:
    work = path.with_name(f".{path.name}-unfinished")
    folders = [part_folder(work, number) for number in range(parts)]
    folders[0].parent.mkdir(parents=True, exist_ok=True)
    try:
        run(work, [n for n, one in enumerate(folders) if not (one / PART).is_file()], partial(_make_part, make, work))
    except BaseException:
        if not any(folders[0].parent.iterdir()):  # nothing that would be worth keeping
            shutil.rmtree(work)
        raise
    found = [json.loads((one / PART).read_text()) for one in folders]
    meta = finish(work, [part.pop("facts") for part in found])
    for left in (folders[0].parent.glob(".*"), work.glob("logs")):  # of a killed build, of a cluster's jobs
        for one in left:
            shutil.rmtree(one)
    write_json(work / FILES, checksums(work, FILES, META), indent=None)
    write_json(work / META, meta | {"parts": [{"name": f.name} | p for f, p in zip(folders, found, strict=True)]})
    publish(work, path)
    shutil.rmtree(work, ignore_errors=True)


def part_folder(work: Path, number: int) -> Path:
    """Where a part of a store lies."""
    return work / "parts" / f"{number:05}"


def _make_part(make: Callable[[int, Path], None], work: Path, number: int) -> None:
    make_atomically(part_folder(work, number), partial(make, number))
