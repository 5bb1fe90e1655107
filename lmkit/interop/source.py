"""Where tensors come from: safetensors files, read a slice at a time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from lmkit.config.base import ConfigError

Range = tuple[int, int]


class Source(Protocol):
    """Named tensors."""

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str, ranges: Sequence[Range]) -> np.ndarray:
        """A slice of a tensor, in the dtype it is stored in."""
        ...


class SafetensorsSource:
    """The `.safetensors` files of a folder, one or several with an index.

    Raises ConfigError where there are none, where the index names a file or tensor that is not there, or where a file
    is damaged.
    """

    def __init__(self, folder: Path):
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        index = folder / "model.safetensors.index.json"
        try:
            indexed = dict(json.loads(index.read_text())["weight_map"]) if index.exists() else None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{index} is no index of tensors: {type(error).__name__}: {error}; fetch it again"
            ) from error
        for name in (indexed or {}).values():
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
                raise ConfigError(f"{index} names {name!r}, which is no file beside it; fetch it again")
        files = sorted({folder / name for name in indexed.values()} if indexed else folder.glob("*.safetensors"))
        files = [path for path in files if path.name == "model.safetensors"] or files
        if not files:
            raise ConfigError(f"{folder}: no .safetensors files there (weights pickled by torch are not read)")
        for path in files:
            try:
                with safe_open(path, framework="np") as tensors:
                    for name in tensors.keys():  # noqa: SIM118
                        self.shapes[name] = tuple(tensors.get_slice(name).get_shape())
                        self._files[name] = path
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{path}: {error}; fetch it again") from error
        if indexed and (lost := sorted(set(indexed) - set(self.shapes))):
            raise ConfigError(f"{index} lists {lost[0]!r} and {len(lost) - 1} more that no file has; fetch them again")

    def read(self, name: str, ranges: Sequence[Range]) -> np.ndarray:
        # Opened anew each time: what a file that stays open has read stays in memory.
        with safe_open(self._files[name], framework="np") as tensors:
            if not ranges:
                return tensors.get_tensor(name)
            return tensors.get_slice(name)[tuple(slice(*one) for one in ranges)]
