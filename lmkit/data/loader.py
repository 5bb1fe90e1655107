"""Batches on the devices: this host's rows, read ahead by threads."""

from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from lmkit.config.base import ConfigError
from lmkit.config.data import DataConfig
from lmkit.data.prepare import Data
from lmkit.data.sampler import Sampler
from lmkit.data.store import HELDOUT, TRAIN


def make_batch(
    tokens: np.ndarray, end_id: int, isolate: bool, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """int [rows, T + 1] tokens to the arrays of a batch, each [rows, T].

    A segment begins at each end token, which its document is predicted from. `weights` are 1 unless given.
    """
    inputs = tokens[:, :-1]
    batch = {
        "inputs": inputs,
        "targets": tokens[:, 1:],
        "weights": np.ones(inputs.shape, np.float32) if weights is None else weights,
    }
    if isolate:
        batch["segment_ids"] = np.cumsum(inputs == end_id, axis=1, dtype=np.int32)
    return batch


class TrainBatches:
    """Indexable by step: the chosen rows of that step's global batch. Any step costs the same."""

    def __init__(self, data: Data, config: DataConfig, seed: int, steps: int, batch_size: int, rows: np.ndarray):
        self.stores = list(data.stores.values())
        sizes = [store.num_tokens(TRAIN) for store in self.stores]
        for name, size in zip(data.stores, sizes, strict=True):
            if size <= config.seq_len:
                raise ConfigError(
                    f"data.seq_len={config.seq_len}: the training text of {name!r} has only {size} tokens; "
                    f"set data.seq_len={max(size - 1, 1)} or less, or add text"
                )
        self.sampler = Sampler(sizes, list(data.weights.values()), config.seq_len, seed)
        self.config, self.end_id = config, data.tokenizer.end_id
        self.steps, self.batch_size, self.row_numbers = steps, batch_size, rows

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: Any) -> dict[str, np.ndarray]:
        chosen = self.sampler.batch(int(step), self.batch_size)
        part, start = chosen.part[self.row_numbers], chosen.start[self.row_numbers]
        tokens = np.empty((len(part), self.config.seq_len + 1), np.int32)
        for number, store in enumerate(self.stores):
            if (here := part == number).any():
                tokens[here] = store.windows(TRAIN, start[here], self.config.seq_len + 1)
        return make_batch(tokens, self.end_id, self.config.isolate_documents)


def host_rows(sharding: NamedSharding, shape: tuple[int, int]) -> np.ndarray:
    """Which rows of a global [batch, seq] array this host's devices hold, ascending."""
    rows = [np.arange(shape[0])[index[0]] for index in sharding.addressable_devices_indices_map(shape).values()]  # type: ignore
    return np.unique(np.concatenate(rows))


def to_devices(
    batch: dict[str, np.ndarray], rows: np.ndarray, global_rows: int, sharding: NamedSharding
) -> dict[str, jax.Array]:
    """Global arrays [global_rows, ...] from this host's `rows` of them."""
    if len(rows) == global_rows:
        return jax.device_put(batch, sharding)
    place = np.full(global_rows, -1)
    place[rows] = np.arange(len(rows))

    def spread(local: np.ndarray) -> jax.Array:
        shape = (global_rows, *local.shape[1:])
        return jax.make_array_from_callback(
            shape,
            sharding,
            lambda index: local[place[index[0]]][(slice(None), *index[1:])],  # pyright: ignore
        )

    return {name: spread(local) for name, local in batch.items()}


def train_batches(
    data: Data, config: DataConfig, *, seed: int, first_step: int, steps: int, batch_size: int, sharding: NamedSharding
) -> Iterator[dict[str, jax.Array]]:
    """Batches of steps first_step .. steps, on the devices."""
    rows = host_rows(sharding, (batch_size, config.seq_len))
    source: Any = TrainBatches(data, config, seed, steps, batch_size, rows)
    options = grain.ReadOptions(num_threads=config.read_threads, prefetch_buffer_size=config.prefetch)
    for batch in grain.MapDataset.source(source)[first_step:].to_iter_dataset(options):
        yield to_devices(batch, rows, batch_size, sharding)


def heldout_batches(
    data: Data, config: DataConfig, *, batch_size: int, limit: int, sharding: NamedSharding
) -> Iterator[tuple[str, dict[str, jax.Array]]]:
    """(part, batch) over the held-out text, every token predicted once; padded rows weigh 0.

    `limit` batches a part, spread over the split; 0 for all.
    """
    rows = host_rows(sharding, (batch_size, config.seq_len))
    length = config.seq_len
    for name, store in data.stores.items():
        size = store.num_tokens(HELDOUT)
        starts = np.arange(0, size - 1, length)
        count = -(-len(starts) // batch_size)
        for number in np.unique(np.linspace(0, count - 1, limit or count).astype(int))[: limit or count]:
            index = number * batch_size + rows
            tokens = np.full((len(rows), length + 1), data.tokenizer.end_id, np.int32)
            weights = np.zeros((len(rows), length), np.float32)
            for row, i in enumerate(index):
                if i < len(starts):
                    held = store.windows(HELDOUT, starts[i : i + 1], min(length + 1, size - int(starts[i])))[0]
                    tokens[row, : len(held)] = held
                    weights[row, : len(held) - 1] = 1.0
            batch = make_batch(tokens, data.tokenizer.end_id, config.isolate_documents, weights)
            yield name, to_devices(batch, rows, batch_size, sharding)
