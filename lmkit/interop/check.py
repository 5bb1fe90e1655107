"""Before a model's tensors are read: all are there, of the right shape, and none is left over."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.model import ModelConfig
from lmkit.interop.source import Source
from lmkit.interop.table import Family, Row

FLOATS = ("F64", "F32", "F16", "BF16")
# Tensors that hold nothing that was trained, and why. Any other tensor that is not read is an error that names it.
HARMLESS = {
    r".*rotary_emb\.inv_freq": "rotary frequencies, which follow from config.json",
    r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias": "GPT-2's causal mask",
    r"(.*\.)?position_ids": "0, 1, 2, ...",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": "T5 never used it",
}
_CLOSE = {"F16": 1e-3, "BF16": 8e-3}  # fixed sines are computed anew, in float32, and those of a file were rounded
_ROWS = 4096  # of two tensors that are compared, so many at a time


class Reader:
    """A source whose names may lack the family's prefix, as files of the bare model do."""

    def __init__(self, source: Source, prefix: str):
        self.source, self.prefix = source, prefix

    def stored(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are there, as they are stored; one known by another name alone, last."""
        short = [name.removeprefix(self.prefix) for name in names]
        found = [name for name in short if name in self.source.shapes]
        return found or [self.source.aliases[name] for name in short if name in self.source.aliases]

    def find(self, names: Iterable[str]) -> str | None:
        """The first of the names that is there."""
        return next(iter(self.stored(names)), None)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shapes[name]

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same."""
        shape = self.shape(one)
        if shape != self.shape(other) or not shape:
            return shape == self.shape(other) and bool(self.source.read(one, ()) == self.source.read(other, ()))
        for first in range(0, shape[0], _ROWS):
            rows = [(first, min(first + _ROWS, shape[0])), *((0, size) for size in shape[1:])]
            if not np.array_equal(self.source.read(one, rows), self.source.read(other, rows)):
                return False
        return True

    def holds(self, name: str, value: np.ndarray) -> bool:
        """Whether a tensor is this array, but for rounding."""
        close = _CLOSE.get(self.source.dtypes.get(name, ""), 1e-4)
        found = self.source.read(name, ()) if self.shape(name) == value.shape else None
        return found is not None and np.allclose(found.astype(np.float32), value, atol=close)


def check_tensors(
    family: Family, config: ModelConfig, rows: Mapping[str, Row], leaves: Mapping[str, Any], reader: Reader
) -> list[str]:
    """Lines for the user about tensors and files that are not read.

    Raises ConfigError naming tensors that are missing, left over, of another shape, quantised, or not what the
    configuration says of them.
    """
    missing, misshaped, wrong, used = [], [], [], set()
    for path, row in rows.items():
        if path not in leaves:
            used |= _unread(row, reader)
            continue
        shape = tuple(leaves[path].shape)
        expected = row.their_shape(shape[row.each :])
        for index in product(*map(range, shape[: row.each])):
            names = reader.stored(row.names(index))
            if not names:
                missing.append(f"{row.names(index)[0]} {list(expected)} (for {path})")
                continue
            used.update(names)
            if reader.shape(names[0]) != expected:
                misshaped.append(f"{names[0]} {list(reader.shape(names[0]))} instead of {list(expected)} (for {path})")
            wrong += [f"{one} is no copy of {names[0]}" for one in names[1:] if not reader.equal(names[0], one)]
    quantised = [
        f"{name} is {kind}" for name in sorted(used) if (kind := reader.source.dtypes.get(name, "F32")) not in FLOATS
    ]
    if quantised:
        raise ConfigError(
            f"the weights are quantised: {some(quantised, 2)}; lmkit reads {', '.join(FLOATS)}: dequantise the "
            f"folder first (transformers saves it so after from_pretrained(..., dtype='bfloat16'))"
        )
    fixed, unfit = _fixed(family, config, reader, used)
    left = [name for name in reader.source.shapes if name not in used and not _harmless(name)]
    dropped = [name for name in left if name not in fixed and name.endswith(family.ignored or ("\0",))]
    extra = [f"{name} {list(reader.shape(name))}" for name in left if name not in {*fixed, *dropped}]
    problems = {"missing": missing, "extra": [*extra, *unfit], "of another shape": misshaped, "contradicting": wrong}
    if found := [f"{kind}: {some(names)}" for kind, names in problems.items() if names]:
        raise ConfigError(f"these are not the tensors of this {family.model_type}; " + "; ".join(found))
    return [
        *reader.source.notes,
        *([f"not read, as this model has no use for them: {some(dropped)}"] if dropped else []),
    ]


def _unread(row: Row, reader: Reader) -> set[str]:
    """The tensors of a parameter that is not asked for."""
    names = [re.sub(r"\\\{(layer|expert)\\\}", r"\\d+", re.escape(name)) for name in (row.theirs, *row.also)]
    pattern = re.compile("|".join(names))
    return {name for name in reader.source.shapes if pattern.fullmatch(reader.prefix + name)}


def _fixed(family: Family, config: ModelConfig, reader: Reader, used: set[str]) -> tuple[set[str], list[str]]:
    """Tensors that must have one value (zeros, fixed sines), and those of them that have another."""
    made, fixed, wrong = family.made(config) | family.implied(config), set(), []
    for name in reader.source.shapes:
        if name in used:
            continue
        value = made.get(reader.prefix + name, made.get(name))
        if value is not None:
            fixed.add(name)
            if not reader.holds(name, value):
                what = "which is not what lmkit computes in its place" if value.any() else "which is not zero"
                wrong.append(f"{name} {list(reader.shape(name))}, {what}")
    return fixed, wrong


def _harmless(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in HARMLESS)


def some(names: Sequence[str], shown: int = 8) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
