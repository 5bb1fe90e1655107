"""Where tensors come from: safetensors files, read a slice at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from lmkit.config.base import ConfigError
from lmkit.config.documents import read_document
from lmkit.interop import float8

Range = tuple[int, int]
INDEX = "model.safetensors.index.json"
FETCH = "fetch it again"


class Source(Protocol):
    """Named tensors.

    Attributes:
        dtypes: how a tensor is stored, such as BF16; dequantised ones have no entry.
        aliases: other names of tensors, and the name that each is stored under.
        notes: lines for the user about what is not read.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    aliases: dict[str, str]
    notes: list[str]

    def read(self, name: str, ranges: Sequence[Range]) -> np.ndarray:
        """A slice of a tensor, in the dtype it is stored in; all of it for no ranges."""
        ...


class SafetensorsSource:
    """The `.safetensors` files of a folder: those that the index names, else model.safetensors, else all.

    The index decides which file a tensor is read from. Raises ConfigError where there are no files, a file lacks a
    tensor that the index assigns to it, two files disagree with no index to decide, or a file is damaged.
    """

    def __init__(self, folder: Path):
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.notes: list[str] = []
        self._scaled: dict[str, tuple[str, str, tuple[int, ...]]] = {}  # dtype, name of the scales, their block
        index, present = folder / INDEX, sorted(folder.glob("*.safetensors"))
        indexed = _read_index(index) if index.exists() else {}
        files = sorted({folder / name for name in indexed.values()})
        files = files or [path for path in present if path.name == "model.safetensors"] or present
        if not files:
            raise ConfigError(f"{folder}: no .safetensors files there (weights pickled by torch are not read)")
        copies = [copy for path in files for copy in self._open(path, indexed)]
        if lost := sorted(set(indexed) - set(self._files)):
            raise ConfigError(
                f"{index} says that {lost[0]!r} is in {indexed[lost[0]]}, which has no such tensor"
                + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else "")
                + "; fetch the index and the files again"
            )
        for name, path in copies:
            self._compare(name, path, name in indexed)
        if unread := [path.name for path in present if path not in files]:
            self.notes.append(f"not read: {', '.join(unread)} ({INDEX if indexed else 'model.safetensors'} decides)")
        self._find_scales(folder)

    def _open(self, path: Path, indexed: Mapping[str, str]) -> list[tuple[str, Path]]:
        """Notes a file's tensors; returns those that belong to another file."""
        copies = []
        try:
            with safe_open(path, framework="np") as tensors:
                stored = list(tensors.keys())
                for name in stored:
                    if indexed.get(name, path.name) != path.name or name in self._files:
                        copies.append((name, path))
                        continue
                    part = tensors.get_slice(name)
                    self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()
                    self._files[name] = path
                # of tensors that are one, a writer keeps the first and notes the names of the others
                shared = tensors.metadata() or {}
                self.aliases |= {one: kept for one, kept in shared.items() if one not in stored and kept in stored}
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such file, and {INDEX} names it; {FETCH}") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigError(f"{path} is damaged: {error}; {FETCH}") from error
        return copies

    def _find_scales(self, folder: Path) -> None:
        """Takes scales out of the tensors, and what they are of out of those that are stored as quantised."""
        small = [name for name, kind in self.dtypes.items() if kind in float8.DTYPES]
        config = read_document(folder / "config.json") if small and (folder / "config.json").is_file() else {}
        said = config.get("quantization_config")
        block = (said.get("weight_block_size") if isinstance(said, dict) else None) or float8.BLOCK
        for name in small:
            scale = next((name + end for end in float8.SCALES if name + end in self.shapes), None)
            if scale is not None:
                blocks = float8.blocks_of(name, self.shapes[name], self.shapes.pop(scale), block)
                self._scaled[name] = self.dtypes.pop(name), scale, blocks
        unused = [name for name in self.shapes if self._scaled and name.endswith(float8.UNUSED)]
        for name in unused:
            del self.shapes[name]
        if self._scaled:
            more = f"; not read: {len(unused)} scales of activations" if unused else ""
            self.notes.append(f"{len(self._scaled)} float8 weights are dequantised by their scales{more}")

    def _compare(self, name: str, path: Path, indexed: bool) -> None:
        """Says of a second copy of a tensor that it is another one."""
        owner = self._files[name]
        try:
            with safe_open(owner, framework="np") as first, safe_open(path, framework="np") as second:
                same = np.array_equal(first.get_tensor(name), second.get_tensor(name))
        except (SafetensorError, AttributeError, TypeError, ValueError):  # a dtype that numpy has not
            same = False
        if same:
            return
        problem = f"{path.name} has another {name} than {owner.name}"
        if not indexed:
            raise ConfigError(f"{path.parent}: {problem}, and no {INDEX} says which is right: remove one of them")
        self.notes.append(f"{problem}, which {INDEX} names: that of {owner.name} is read")

    def read(self, name: str, ranges: Sequence[Range]) -> np.ndarray:
        if name in self._scaled:
            kind, scale, block = self._scaled[name]
            weight = float8.read_raw(self._files[name], name, kind)
            ranges = ranges or [(0, size) for size in weight.shape]
            return float8.dequantised(weight, ranges, self._stored(scale, ()), block)
        return self._stored(name, ranges)

    def _stored(self, name: str, ranges: Sequence[Range]) -> np.ndarray:
        """As `read`, as it is stored."""
        if (kind := self.dtypes.get(name)) in float8.DTYPES:
            return float8.read_raw(self._files[name], name, str(kind))[tuple(slice(*one) for one in ranges)]
        # Opened anew each time: what a file that stays open has read stays in memory.
        with safe_open(self._files[name], framework="np") as tensors:
            if not ranges:
                return tensors.get_tensor(name)
            return tensors.get_slice(name)[tuple(slice(*one) for one in ranges)]


def _read_index(path: Path) -> dict[str, str]:
    """Which file has which tensor. Raises ConfigError where it is damaged."""
    found = read_document(path, dict, FETCH).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path} has no weight_map of tensors to files; {FETCH}")
    for name, file in found.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file or "\0" in file:
            raise ConfigError(f"{path}: {name!r} is in {file!r}, which is no file of this folder; {FETCH}")
    return found
