"""CRC-32 of every file of a checkpoint: a flipped bit in an array file would otherwise load silently."""

import json
import zlib
from pathlib import Path

NAME = "lmkit_manifest.json"


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def write_manifest(folder: Path) -> None:
    """Records the files of a committed checkpoint, beside them."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    sums = {p.relative_to(folder).as_posix(): [p.stat().st_size, _crc32(p)] for p in files}
    tmp = folder / f".{NAME}.tmp"
    tmp.write_text(json.dumps(sums))
    tmp.replace(folder / NAME)


def check_manifest(folder: Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with a checkpoint, naming the file; "" where all is as it was written (or there is no manifest).

    Only every `parts`-th file is read, from number `part`.
    """
    if not (folder / NAME).is_file():
        return ""
    for name, (size, crc) in list(json.loads((folder / NAME).read_text()).items())[part::parts]:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
        if _crc32(path) != crc:
            return f"{name} has changed since it was written (CRC-32)"
    return ""
