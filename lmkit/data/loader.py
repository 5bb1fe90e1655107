"""Batches on the devices: this host's rows, read ahead by threads or processes within a budget of memory."""

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import DataConfig
from lmkit.data.batches.windows import Batches, heldout_indices
from lmkit.parallel.rules import sharding_of

_SHARED = "/dev/shm" if sys.platform == "linux" else os.curdir
DeviceBatch = dict[str, jax.Array]


def array_sharding(name: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """How a batch's array lies: rows over the batch axes, of token arrays the sequence over its own, where it can."""
    split = len(shape) == 2 and name not in ("masked_positions",) and shape[1] % mesh.shape["context"] == 0
    return sharding_of(("batch", "seq" if split else None, *[None] * (len(shape) - 2))[: len(shape)], mesh, shape, name)


def batch_shapes(batches: Batches, batch_size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a global batch, with their shardings: for compiling before there is data."""
    return {
        name: jax.ShapeDtypeStruct(
            (batch_size, *shape), dtype, sharding=array_sharding(name, (batch_size, *shape), mesh)
        )
        for name, (shape, dtype) in batches.shapes().items()
    }


def host_rows(sharding: NamedSharding, shape: tuple[int, ...]) -> np.ndarray:
    """Which rows of a global [batch, ...] array this host's devices hold, ascending."""
    rows = [np.arange(shape[0])[index[0]] for index in sharding.addressable_devices_indices_map(shape).values()]  # type: ignore
    return np.unique(np.concatenate(rows))


def to_devices(
    batch: Mapping[str, np.ndarray], rows: np.ndarray, shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> DeviceBatch:
    """Global arrays as in `shapes` from this host's `rows` of them."""
    total = next(iter(shapes.values())).shape[0]
    if len(rows) == total and jax.process_count() == 1:  # on many hosts device_put compares their values, each time
        whole = {name: np.asarray(batch[name], shape.dtype) for name, shape in shapes.items()}
        return jax.device_put(whole, {name: shape.sharding for name, shape in shapes.items()})
    place = np.full(total, -1)
    place[rows] = np.arange(len(rows))

    def spread(local: np.ndarray, shape: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(
            shape.shape,
            shape.sharding,  # type: ignore[arg-type]
            lambda index: local[place[index[0]]][(slice(None), *index[1:])],  # pyright: ignore
        )

    return {name: spread(np.asarray(batch[name], shape.dtype), shape) for name, shape in shapes.items()}


def _rows_here(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> np.ndarray:
    one = next(iter(shapes.values()))
    return host_rows(one.sharding, one.shape)  # type: ignore[arg-type]


class _Steps:
    """What grain's threads read: the rows of this host, by step."""

    def __init__(self, batches: Batches, steps: int, batch_size: int, rows: np.ndarray):
        self.batches, self.steps, self.batch_size, self.rows = batches, steps, batch_size, rows

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: Any) -> dict[str, np.ndarray]:
        return self.batches.train(int(step), self.batch_size, self.rows)


def batches_ahead(config: DataConfig, shapes: Mapping[str, jax.ShapeDtypeStruct], rows: int) -> int:
    """How many batches of `rows` rows on this host may be ready at once: data.prefetch, or what the budget holds.

    Raises ConfigError where it holds none.
    """
    total = next(iter(shapes.values())).shape[0]
    size = sum(math.prod(one.shape) * one.dtype.itemsize for one in shapes.values()) * rows // total
    if (fit := config.batch_bytes // max(size, 1)) < 1:
        need = -(-size * 2 // 1_000_000)
        raise ConfigError(
            f"data.memory_mb={config.memory_mb}: one batch takes {size / 1e6:.0f} MB of this host, and half of the "
            f"budget is for batches; set data.memory_mb={need} or more, or a smaller train.batch_size"
        )
    return min(config.prefetch, fit)


class TrainBatches:
    """Batches of steps first_step .. steps, on the devices; `waited_sec` is the time that was spent on waiting."""

    def __init__(
        self, batches: Batches, config: DataConfig, *, first_step: int, steps: int, batch_size: int, mesh: Mesh
    ):
        self.waited_sec = 0.0
        self._shapes = batch_shapes(batches, batch_size, mesh)
        self._rows = _rows_here(self._shapes)
        ahead = batches_ahead(config, self._shapes, len(self._rows))
        source: Any = _Steps(batches, steps, batch_size, self._rows)
        data = grain.MapDataset.source(source)[first_step:]
        workers = min(config.read_processes, ahead)
        threads = 1 if workers else min(config.read_threads, ahead)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=1 if workers else ahead)
        data = data.to_iter_dataset(options)
        if workers:  # no state of theirs is ever kept: a step says where to begin
            parse_absl_flags()
            check_shared_memory(config)
            data = data.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=ahead // workers))
        self._host_batches = iter(data)

    def __iter__(self) -> Iterator[DeviceBatch]:
        return self

    def __next__(self) -> DeviceBatch:
        began = time.perf_counter()
        batch = next(self._host_batches)
        self.waited_sec += time.perf_counter() - began
        return to_devices(batch, self._rows, self._shapes)


def check_shared_memory(config: DataConfig) -> None:
    """Raises ConfigError where processes could not hand over their batches."""
    if not os.access(_SHARED, os.W_OK):
        raise ConfigError(
            f"data.read_processes={config.read_processes}: processes share memory through {_SHARED}, which cannot be "
            f"written here; set data.read_processes=0"
        )


def parse_absl_flags() -> None:
    """grain's processes ask for absl's flags, which Hydra leaves unread."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["lmkit"])


def heldout_batches(
    batches: Batches, parts: list[str], *, batch_size: int, limit: int, mesh: Mesh
) -> Iterator[tuple[str, DeviceBatch]]:
    """(part, batch) over what is held out, every row once; padded rows weigh 0.

    `limit` batches a part, spread over the split; 0 for all.
    """
    shapes = batch_shapes(batches, batch_size, mesh)
    rows = _rows_here(shapes)
    for part in parts:
        for index in heldout_indices(batches, part, batch_size, limit):
            yield part, to_devices(batches.heldout(part, index[rows]), rows, shapes)
