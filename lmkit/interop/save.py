"""Export: a folder in the Hugging Face layout, whole or not there at all."""

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from lmkit.config.base import ConfigError
from lmkit.config.sections.model import ModelConfig
from lmkit.files import usual_mode
from lmkit.interop.table import Family, Json, Layout, Row
from lmkit.models import build_model
from lmkit.nn.tree import flat, mismatch

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def check_params(config: ModelConfig, params: Any) -> None:
    """Raises ConfigError where these are not the parameters of a configuration's model."""
    expected = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[1])
    if wrong := mismatch(flat(params), flat(expected)):
        raise ConfigError(
            f"these are not the parameters of a model of this {type(config).__name__}; {wrong}: give the "
            f"configuration that they were made with"
        )


def save_tensors(
    folder: Path,
    family: Family,
    theirs: Json,
    config: ModelConfig,
    params: Any,
    *,
    dtype: str,
    shard_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes config.json, the weights in files of at most `shard_bytes`, and their index where they are several.

    The host holds one file's worth at a time.
    """
    plan = tensor_plan(family, config, params)
    sizes = {name: math.prod(shape) * DTYPES[dtype].itemsize for name, shape, _ in plan}
    files: list[list[Any]] = [[]]
    room = shard_bytes
    for entry in plan:
        if sizes[entry[0]] > room and files[-1]:
            files.append([])
            room = shard_bytes
        files[-1].append(entry)
        room -= sizes[entry[0]]
    where, done = {}, 0
    for number, entries in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        _write(folder / name, entries, DTYPES[dtype])
        where |= dict.fromkeys((one for one, *_ in entries), name)
        done += sum(sizes[one] for one, *_ in entries)
        if progress is not None:
            progress(done, sum(sizes.values()))
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(theirs | {"dtype": dtype, "torch_dtype": dtype}, indent=2) + "\n")


def _write(path: Path, entries: list[Any], dtype: np.dtype) -> None:
    tensors = {
        name: np.ascontiguousarray(read()).astype(dtype, copy=False).reshape(shape) for name, shape, read in entries
    }
    save_file(tensors, path, metadata={"format": "pt"})
    usual_mode(path)


def tensor_plan(family: Family, config: ModelConfig, params: Any) -> list[tuple[str, tuple[int, ...], Callable]]:
    """(their name, their shape, how to read it) of every tensor."""
    leaves = flat(params)
    shared: dict[str, list[tuple[Row, tuple[int, ...]]]] = {}
    for row in family.rows(config):
        for index in product(*map(range, leaves[row.ours].shape[: row.each])):
            shared.setdefault(row.names(index)[0], []).append((row, index))
    plan: list[tuple[str, tuple[int, ...], Callable]] = []
    for name, parts in shared.items():
        parts.sort(key=lambda one: one[0].part)
        shape = parts[0][0].their_shape(leaves[parts[0][0].ours].shape[parts[0][0].each :])
        plan.append((name, shape, lambda parts=parts, shape=shape: _join(leaves, parts, shape)))
    plan += [(name, value.shape, lambda value=value: value) for name, value in family.made(config).items()]
    return plan


def _join(leaves: dict[str, Any], parts: list[tuple[Row, tuple[int, ...]]], shape: tuple[int, ...]) -> np.ndarray:
    """Their tensor, of all the parameters of ours that lie side by side in it."""
    pieces = []
    for row, index in parts:
        own = _to_host(leaves[row.ours], index)
        joined = own.reshape([math.prod(own.shape[first:last]) for first, last in row.spans(own.shape)])
        if row.layout is Layout.conv:
            joined = np.moveaxis(joined.reshape(*row.taps, -1, own.shape[1]), (-1, -2), (0, 1))
        pieces.append(joined.T if row.layout is Layout.linear else joined)
    axis = 0 if parts[0][0].layout is Layout.linear else -1
    return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=axis)).reshape(shape)


def _to_host(leaf: Any, index: tuple[int, ...]) -> np.ndarray:
    """One layer's (and expert's) parameter, gathered from the devices it is split over."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ConfigError("the model is spread over several hosts: export it from a checkpoint on one")
    return np.asarray(leaf[index] if index else leaf)
