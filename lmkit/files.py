"""Files that must be right: checksums of folders, files replaced in one step, a lock on a path, who may read them."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_came_with: list[int] = []  # the umask of the process, while `private_files` has put another in its place
Checksums = dict[str, list[int]]  # path from the folder -> [bytes, CRC-32]


def is_checksum(value: Any) -> bool:
    """Whether this is [bytes, CRC-32], as a list of checksums has it."""
    return isinstance(value, list) and len(value) == 2 and all(type(one) is int for one in value)


def crc32(path: Path) -> int:
    """Of a file's bytes."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def checksums(folder: Path, of: Callable[[str], bool] = lambda _: True) -> Checksums:
    """Of every file of a folder whose path from there `of` takes."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: [(folder / name).stat().st_size, crc32(folder / name)] for name in names if of(name)}


def changes(folder: Path, sums: Mapping[str, list[int]], seen: Callable[[int], None] = lambda _: None) -> list[str]:
    """What is no longer as it was, a line a file. `seen` is told the bytes of each file that was looked at."""
    problems = []
    for name, (size, crc) in sums.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        problems += difference(name, found, size, lambda path=path: crc32(path), crc)
        seen(size)
    return problems


def difference(name: str, found: int | None, size: int, crc_now: Callable[[], int], crc: int) -> list[str]:
    """What is wrong with a file of `found` bytes (None: there is none) that had `size`, in a line, or nothing."""
    if found is None:
        return [f"{name} is missing"]
    if found != size:
        return [f"{name} has {found} bytes, {size} were written"]
    return [f"{name} has changed since it was written (CRC-32)"] if crc_now() != crc else []


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step: a reader, or a crash, never meets half of it; of two writers the last one stays."""
    tmp = beside(path)
    try:
        tmp.write_text(text, encoding="utf-8")
        tmp.replace(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def beside(path: Path) -> Path:
    """A hidden name beside `path` that no other process has: for what is renamed to `path` once it is whole."""
    return path.with_name(f".{path.name}-{secrets.token_hex(8)}.tmp")


def write_json(path: Path, values: object, indent: int | None = 1) -> None:
    """The same of JSON; what JSON does not know becomes a string."""
    write_text(path, json.dumps(values, indent=indent, default=str) + "\n")


def usual_mode(path: Path) -> None:
    """Gives a file that a library wrote for its owner alone the mode that any other file would have."""
    like = beside(path)
    like.touch()
    try:
        path.chmod(stat.S_IMODE(like.stat().st_mode))
    finally:
        like.unlink()


@contextlib.contextmanager
def private_files(umask: int) -> Iterator[None]:
    """What this process writes inside, its libraries and threads too, has the modes of this umask."""
    _came_with.append(os.umask(umask))
    try:
        yield
    finally:
        os.umask(_came_with.pop())


@contextlib.contextmanager
def shared_files() -> Iterator[None]:
    """The umask that the process came with, for what others may read although `private_files` is in force."""
    before = os.umask(_came_with[0]) if _came_with else None
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)


def share_files(folder: Path) -> None:
    """Gives our files directly in a folder the modes they would have had without `private_files`."""
    if not _came_with:
        return
    modes = 0o666 & ~_came_with[0]
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
                if ours and ~found.st_mode & modes:
                    os.chmod(entry, found.st_mode | modes)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Waits until no other process is inside for the same path; the lock goes with the process.

    Yields whether it holds a lock. Some network file systems have none: there nothing is waited for. On others a lock
    counts on one machine alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / f".{path.name}.lock"
    file, held = _locked(lock)
    try:
        yield held
    finally:
        lock.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is no longer this file
        file.close()


def _locked(lock: Path) -> tuple[IO[str], bool]:
    while True:
        file = lock.open("w")
        held = lock_file(file, wait=True)
        with contextlib.suppress(FileNotFoundError):
            if lock.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file, held
        file.close()


def lock_file(file: IO[str], *, wait: bool) -> bool:
    """Locks an open file; False where its file system has no locks.

    Raises BlockingIOError, without `wait`, where another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from error
        return False
    return True
