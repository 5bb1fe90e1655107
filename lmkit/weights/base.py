"""What a LoRA run adapts: where its parameters are, and how a copy of them is recognised."""

import hashlib
from pathlib import Path
from typing import Any

from lmkit.checkpoint import find_checkpoint
from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.files import write_json
from lmkit.weights.source import Form, form_of

BASE = "base.json"
_SAMPLE = 1 << 16


def record_base(run: Path, init_from: str, place: Path, scale: float) -> None:
    """Writes what a LoRA run adapts, for `load_base`."""
    values = {"init_from": init_from, "place": str(place.absolute()), "fingerprint": fingerprint(place), "scale": scale}
    write_json(run / BASE, values)


def read_base(run: Path) -> dict[str, Any]:
    """What `record_base` wrote. Raises ConfigError where it is damaged."""
    base = read_document(run / BASE)
    kinds = {"init_from": str, "place": str, "fingerprint": str, "scale": (int, float)}
    if wrong := [name for name, kind in kinds.items() if not isinstance(base.get(name), kind)]:
        raise ConfigError(f"{run / BASE} is damaged: {wrong[0]}={base.get(wrong[0])!r}; bring the file again")
    return base


def weights_at(path: Path) -> Path:
    """The folder or file that is read: of a run the newest good checkpoint."""
    return find_checkpoint(path)[0] if form_of(path) is Form.run else path


def fingerprint(place: Path) -> str:
    """Of names, sizes and both ends of the files of weights: cheap, and the same for a copy elsewhere.

    A checkpoint's manifests have the CRC-32 of every file, and stand for them.
    """
    names = ("lmkit_manifest*.json", "config.json", "*.safetensors")
    files = [place] if place.is_file() else sorted({file for name in names for file in place.glob(name)})
    files = files or sorted(file for file in place.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(_SAMPLE))
            content.seek(max(size - _SAMPLE, 0))
            digest.update(content.read(_SAMPLE))
    return digest.hexdigest()
