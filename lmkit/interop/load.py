"""Import: tensors of theirs straight into sharded arrays of ours."""

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import jax
import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.model import ModelConfig
from lmkit.interop.check import Reader, check_tensors, some
from lmkit.interop.source import Range, Source
from lmkit.interop.table import Family, Layout, Row
from lmkit.nn.tree import flat, nested

Progress = Callable[[int, int], None]
_ALIGNED = 64  # a buffer that begins at a multiple of so many bytes becomes a CPU array without a copy


def load_tensors(
    family: Family,
    config: ModelConfig,
    source: Source,
    shapes: Any,
    progress: Progress | None = None,
    partial: bool = False,
    notes: list[str] | None = None,
) -> Any:
    """Parameters in a tree like `shapes` (ShapeDtypeStructs, with shardings or without), in their dtypes.

    Each device's share of each parameter is read, laid out and placed before the next, so the host holds its share of
    the model and one parameter's share more. Raises ConfigError naming missing, extra and mis-shaped tensors (eight of
    each kind, and how many more) before anything is read. `progress(bytes done, bytes in all)`. With `partial`, what
    `shapes` lack of the configuration's model stays unread. `notes` gets a line for what else stays unread;
    without it that is a warning.
    """
    if not isinstance(config, family.schema):
        raise ConfigError(f"a {family.model_type} is a {family.schema.__name__}, not a {type(config).__name__}")
    leaves = flat(shapes)
    rows = {row.ours: row for row in family.rows(config)}
    if unknown := sorted(set(leaves) - set(rows) if partial else set(rows) ^ set(leaves)):
        raise ConfigError(
            f"a {family.model_type} has no tensors for {some(unknown)}: `shapes` is not of the model of this "
            f"configuration, or it has a block of its own"
        )
    bare = family.prefix and not any(name.startswith(family.prefix) for name in source.shapes)
    reader = Reader(source, family.prefix if bare else "")
    told = check_tensors(family, config, rows, leaves, reader)
    if notes is not None:
        notes += told
    elif told:
        warnings.warn("; ".join(told), stacklevel=3)
    total, done, loaded = sum(math.prod(leaf.shape) * 4 for leaf in leaves.values()), 0, {}
    for path, leaf in leaves.items():
        loaded[path] = _place(rows[path], leaf, reader)
        done += math.prod(leaf.shape) * 4
        if progress is not None:
            progress(done, total)
    return nested(loaded)


def _place(row: Row, leaf: Any, reader: Reader) -> jax.Array:
    shape, sharding = tuple(leaf.shape), getattr(leaf, "sharding", None)
    whole = tuple((0, size) for size in shape)
    if sharding is None:
        return jax.device_put(_share(row, leaf, whole, reader), may_alias=True)
    pieces, done = [], {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ranges = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        if ranges not in done:
            done = {ranges: _share(row, leaf, ranges, reader)}
        pieces.append(jax.device_put(done[ranges], device, may_alias=len(sharding.device_set) == 1))
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)


def _share(row: Row, leaf: Any, ranges: Sequence[Range], reader: Reader) -> np.ndarray:
    """The part `ranges` of one parameter of this shape and dtype."""
    shape = tuple(leaf.shape)
    out = _empty([last - first for first, last in ranges])
    lead, own = ranges[: row.each], ranges[row.each :]
    for place in product(*(range(last - first) for first, last in lead)):
        name = reader.find(row.names([first + n for n, (first, _) in zip(place, lead, strict=True)]))
        assert name is not None
        out[place] = _one(row, shape[row.each :], own, name, reader)
    return out.astype(leaf.dtype, copy=False)


def _one(row: Row, own: tuple[int, ...], ranges: Sequence[Range], name: str, reader: Reader) -> np.ndarray:
    """The part `ranges` of one layer's parameter. No more is read, but of a convolution, which is small, all."""
    if row.layout is Layout.conv:
        tensor = np.moveaxis(reader.source.read(name, ()), (0, 1), (-1, -2)).reshape(own)
        return tensor[tuple(slice(*one) for one in ranges)]
    wanted, spans = [], row.spans(own)
    for first, last in spans:
        inner = [(0, size) for size in own[first + 1 : last]]
        assert list(ranges[first + 1 : last]) == inner, f"{row.ours}: only the first of flattened dims can be split"
        stride = math.prod(own[first + 1 : last])
        wanted.append(tuple(place * stride for place in ranges[first]))
    if row.part[1] > 1:
        offset = row.part[0] * math.prod(own[spans[-1][0] :])
        wanted[-1] = tuple(place + offset for place in wanted[-1])
    shape = [end - begin for begin, end in wanted]
    wanted = wanted[::-1] if row.layout is Layout.linear else wanted
    tensor = reader.source.read(name, [*[(0, 1)] * row.pad, *wanted])
    tensor = tensor.T if row.layout is Layout.linear else tensor.reshape(shape)
    return tensor.reshape([last - first for first, last in ranges])


def _empty(shape: Sequence[int]) -> np.ndarray:
    raw = np.empty(math.prod(shape) * 4 + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + math.prod(shape) * 4].view(np.float32).reshape(shape)
