"""The manifests of a checkpoint: what its files were when they were written.

Each process writes one, of the files that it wrote itself: lmkit_manifest.json is process 0's, lmkit_manifest.3.json
process 3's. Orbax's metadata says how many there will be, so a save that was cut off before the last of them is known.
"""

import itertools
import re
import time
from pathlib import Path

from lmkit import hosts
from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.files import Checksums, changes, checksums, is_checksum, write_json

PROMISED = "lmkit_manifests"  # in the metadata that a save is given
_METADATA = "_CHECKPOINT_METADATA"
_STEM = "lmkit_manifest"
_OWN = re.compile(r"(?:^|/)(?:ocdbt\.)?process_(\d+)(?:/|$)")  # what a process wrote by itself
_VISIBLE_SEC = 60.0  # in which a network file system shows on all machines what was renamed on one


def write_manifest(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Records the files of a committed checkpoint that process `part` of `parts` wrote, beside them.

    Process 0 has those that no process wrote alone, which are small.
    """

    def is_mine(name: str) -> bool:
        own = _OWN.search(name)
        return not name.startswith(_STEM) and (int(own[1]) % parts if own else 0) == part

    until = time.monotonic() + _VISIBLE_SEC
    while not folder.is_dir() and time.monotonic() < until:
        time.sleep(0.1)
    write_json(folder / _name(part), checksums(folder, of=is_mine), indent=None)


def is_finished(folder: Path) -> bool:
    """Whether all manifests are there that the save promised; those of older versions promised none."""
    return all((folder / _name(part)).is_file() for part in range(_promised(folder)))


def check_manifest(folder: Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with a checkpoint, naming the file; "" where all is as it was written (or there is no manifest).

    Only share number `part` of `parts` of the bytes is read.
    """
    sums: Checksums = {}
    for name in sorted(path.name for path in folder.glob(f"{_STEM}*.json")):
        try:
            found = read_document(folder / name)
        except ConfigError:
            return f"{name} is damaged"
        if (not found and name == _name(0)) or not all(map(is_checksum, found.values())):
            return f"{name} is damaged"
        sums |= found
    largest_first = sorted(sums.items(), key=lambda one: (-one[1][0], one[0]))
    return next(iter(changes(folder, dict(itertools.islice(largest_first, part, None, parts)))), "")


def check_together(folder: Path) -> str:
    """`check_manifest` by all processes, each its share; those that have copies of their own check them apart.

    All must call it.
    """
    file = folder / _name(0)
    # The time of the last change tells copies apart, and is one time to all who see the same file.
    seen = hosts.gather("seen", str(file.stat().st_ctime_ns) if file.is_file() else "")
    mine = [number for number, one in enumerate(seen) if one == seen[hosts.index()]]
    problem = check_manifest(folder, mine.index(hosts.index()), len(mine))
    return next(filter(None, hosts.gather("checked", problem)), "")


def _name(part: int) -> str:
    return f"{_STEM}.{part}.json" if part else f"{_STEM}.json"


def _promised(folder: Path) -> int:
    try:
        found = read_document(folder / _METADATA)["custom_metadata"][PROMISED]
    except (ConfigError, KeyError, TypeError):
        return 0
    return found if isinstance(found, int) else 0
