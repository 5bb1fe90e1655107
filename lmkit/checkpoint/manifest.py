"""The manifest of a checkpoint: what its files were when they were written."""

import itertools
from pathlib import Path

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.files import changes, checksums, is_checksum, write_json

NAME = "lmkit_manifest.json"


def write_manifest(folder: Path) -> None:
    """Records the files of a committed checkpoint, beside them."""
    write_json(folder / NAME, checksums(folder, NAME), indent=None)


def check_manifest(folder: Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with a checkpoint, naming the file; "" where all is as it was written (or there is no manifest).

    Only every `parts`-th file is read, from number `part`.
    """
    if not (folder / NAME).is_file():
        return ""
    try:
        sums = read_document(folder / NAME)
    except ConfigError:
        return f"{NAME} is damaged"
    if not sums or not all(map(is_checksum, sums.values())):
        return f"{NAME} is damaged"
    mine = dict(itertools.islice(sums.items(), part, None, parts))
    return next(iter(changes(folder, mine)), "")
