"""Batches on the devices: this host's rows, read ahead by threads."""

from collections.abc import Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lmkit.config.data import DataConfig
from lmkit.data.batches import Batches, heldout_indices
from lmkit.parallel.rules import sharding_of

DeviceBatch = dict[str, jax.Array]


def array_dims(name: str, ndim: int) -> tuple[str | None, ...]:
    """Dims of a batch's array: rows over the batch axes, of token arrays the sequence over its own."""
    if ndim == 2 and name not in ("places",):
        return ("batch", "seq")
    return ("batch", *[None] * (ndim - 1))


def batch_shapes(batches: Batches, batch_size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a global batch, with their shardings: for compiling before there is data."""
    return {
        name: jax.ShapeDtypeStruct(
            (batch_size, *shape), dtype, sharding=sharding_of(array_dims(name, 1 + len(shape)), mesh)
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


def train_batches(
    batches: Batches, config: DataConfig, *, first_step: int, steps: int, batch_size: int, mesh: Mesh
) -> Iterator[DeviceBatch]:
    """Batches of steps first_step .. steps, on the devices."""
    shapes = batch_shapes(batches, batch_size, mesh)
    rows = _rows_here(shapes)
    source: Any = _Steps(batches, steps, batch_size, rows)
    options = grain.ReadOptions(num_threads=config.read_threads, prefetch_buffer_size=config.prefetch)
    for batch in grain.MapDataset.source(source)[first_step:].to_iter_dataset(options):
        yield to_devices(batch, rows, shapes)


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
