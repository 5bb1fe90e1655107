"""Global batches as pure functions of (seed, step): windows of text, and labelled records.

Both kinds answer the same questions, so the loader, the step and the evaluation need not know which one they read.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.data import DataConfig
from lmkit.config.sections import ObjectiveConfig, ObjectiveKind
from lmkit.data.masking import Masker, Pairer, SpanCutter
from lmkit.data.parts import Batch, Part, Rows, Shapes
from lmkit.data.record_store import RecordStore
from lmkit.data.sampler import Draw, Order, Sampler, hash64
from lmkit.data.store import HELDOUT, TRAIN, TokenStore
from lmkit.data.tokenizer import Tokenizer

_ROW, _OTHER, _SHARE, _HELD = 11, 12, 13, 14  # uses of randomness


class Batches(Protocol):
    """Where a run's batches come from. Rows are numbers within a global batch."""

    def shapes(self) -> Shapes:
        """(shape, dtype) of each array without its batch dim."""
        ...

    def train(self, step: int, batch_size: int, rows: np.ndarray) -> Batch:
        """Some rows of the global batch of a step."""
        ...

    def num_heldout(self, part: str) -> int:
        """Rows that are held out."""
        ...

    def heldout(self, part: str, index: np.ndarray) -> Batch:
        """Rows by their number; those beyond the last one weigh 0."""
        ...


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


class Windows:
    """Windows of token streams: the next token, hidden tokens or cut-out spans are predicted."""

    def __init__(
        self, stores: dict[str, TokenStore], weights: dict[str, float], tokenizer: Tokenizer, config: DataConfig,
        objective: ObjectiveConfig, seed: int,
    ):  # fmt: skip
        self.stores, self.tokenizer, self.config, self.objective, self.seed = stores, tokenizer, config, objective, seed
        self.masker = self.pairer = self.cutter = None
        self.length, self.stride = config.seq_len + 1, config.seq_len  # tokens that are read, and used
        if objective.kind is ObjectiveKind.masked_lm:
            self.masker = Masker(tokenizer, objective.mask_share, objective.mask_words)
            self.length = config.seq_len
            if objective.next_sentence:
                self.pairer, self.length = Pairer(tokenizer, config.seq_len), config.seq_len - 3
                self.stride = self.length
        elif objective.kind is ObjectiveKind.span_corruption:
            self.cutter = SpanCutter(tokenizer, config.seq_len, objective.mask_share, objective.span_tokens)
            self.length = self.stride = self.cutter.raw
            assert self.cutter.spans <= len(tokenizer.sentinel_ids), "more spans than sentinels"
        sizes = [store.num_tokens(TRAIN) for store in stores.values()]
        for name, size in zip(stores, sizes, strict=True):
            if size <= config.seq_len:
                raise ConfigError(
                    f"data.seq_len={config.seq_len}: the training text of {name!r} has only {size} tokens; "
                    f"set data.seq_len={max(size - 1, 1)} or less, or add text"
                )
        self.sampler = Sampler(sizes, list(weights.values()), self.stride, seed)

    def shapes(self) -> Shapes:
        length, ints, floats = self.config.seq_len, np.int32, np.float32
        if self.cutter is not None:
            target = (self.cutter.target_len,)
            return {"source": ((length,), ints), "inputs": (target, ints), "targets": (target, ints),
                    "weights": (target, floats)}  # fmt: skip
        shapes: Shapes = {"inputs": ((length,), ints), "targets": ((length,), ints), "weights": ((length,), floats)}
        if self.masker is not None:
            places = (self.masker.places(length),)
            shapes |= {"places": (places, ints), "targets": (places, ints), "weights": (places, floats)}
        if self.pairer is not None:
            shapes |= {"types": ((length,), ints), "next_sentence": ((), ints)}
        if self.config.isolate_documents or self.pairer is not None:
            shapes["segment_ids"] = ((length,), ints)
        return shapes

    def train(self, step: int, batch_size: int, rows: np.ndarray) -> Batch:
        chosen = self.sampler.batch(step, batch_size)
        part, start = chosen.part[rows], chosen.start[rows]
        tokens = self._read(part, start)
        keys = hash64(self.seed, _ROW, step * batch_size + rows)
        others = None
        if self.pairer is not None:  # the second half of some rows comes from another place of the same part
            room = self.sampler.sizes[part] - self.length
            others = self._read(part, (hash64(keys, _OTHER) % np.maximum(room, 1).astype(np.uint64)).astype(np.int64))
        return self._make(tokens, np.ones(tokens.shape, bool), keys, others)

    def _read(self, part: np.ndarray, start: np.ndarray) -> np.ndarray:
        tokens = np.empty((len(part), self.length), np.int32)
        for number, store in enumerate(self.stores.values()):
            if (here := part == number).any():
                tokens[here] = store.windows(TRAIN, start[here], self.length)
        return tokens

    def _make(self, tokens: np.ndarray, real: np.ndarray, keys: np.ndarray, others: np.ndarray | None) -> Batch:
        """Windows [B, length] and which of their tokens are there, to a batch."""
        end, isolate = self.tokenizer.end_id, self.config.isolate_documents
        if self.cutter is not None:
            batch = self.cutter(tokens, keys)
            return batch | {"weights": batch["weights"] * real.all(axis=1, keepdims=True)}
        if self.masker is None:
            return make_batch(tokens, end, isolate, real[:, 1:].astype(np.float32))
        if self.pairer is not None:
            assert others is not None
            batch = self.pairer(tokens, others, keys)
            whole = batch.pop("tokens")
            batch |= self.masker(whole, (batch["segment_ids"] == 1) & real.any(axis=1, keepdims=True), keys)
            return batch
        batch = self.masker(tokens, real, keys)
        if isolate:
            batch["segment_ids"] = np.cumsum(tokens == end, axis=1, dtype=np.int32)
        return batch

    def num_heldout(self, part: str) -> int:
        size = self.stores[part].num_tokens(HELDOUT)
        if self.cutter is not None or self.pairer is not None:  # whole rows only
            return max((size - self.length) // self.stride + 1, 1)
        return -(-(size - 1) // self.stride)

    def heldout(self, part: str, index: np.ndarray) -> Batch:
        store, end = self.stores[part], self.tokenizer.end_id
        size = store.num_tokens(HELDOUT)
        tokens, real = self._heldout_windows(store, index * self.stride, size)
        keys = hash64(_HELD, index)  # the same in every evaluation
        others = None
        if self.pairer is not None:
            room = max(size - self.length, 1)
            others, _ = self._heldout_windows(store, (hash64(keys, _OTHER) % np.uint64(room)).astype(np.int64), size)
        return self._make(np.where(real, tokens, end), real, keys, others)

    def _heldout_windows(self, store: TokenStore, starts: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.full((len(starts), self.length), self.tokenizer.end_id, np.int32)
        real = np.zeros(tokens.shape, bool)
        for row, start in enumerate(starts.tolist()):
            if (length := min(self.length, size - start)) > 0:
                tokens[row, :length] = store.windows(HELDOUT, [start], length)[0]
                real[row, :length] = True
        return tokens, real


class Records:
    """Labelled records, every one once an epoch."""

    def __init__(
        self, stores: dict[str, RecordStore], weights: dict[str, float], parts: Sequence[Part], config: DataConfig,
        seed: int,
    ):  # fmt: skip
        self.stores, self.parts, self.config, self.seed = stores, parts, config, seed
        self.order = Order([len(store.rows[TRAIN]) for store in stores.values()], list(weights.values()), seed)
        self.mixup = config.augment.mixup

    def shapes(self) -> Shapes:
        shapes = {name: shape for part in self.parts for name, shape in part.shapes.items()}
        return shapes | ({"other_labels": ((), np.int32), "share": ((), np.float32)} if self.mixup else {})

    def train(self, step: int, batch_size: int, rows: np.ndarray) -> Batch:
        first = step * batch_size
        draw = Draw(*(column[rows] for column in self.order.draw(first, batch_size)))
        keys = hash64(self.seed, _ROW, first + rows)
        batch = self._collate(draw, keys)
        if not self.mixup:
            return batch
        # Zhang et al. 2018, equation 2; the partner is any other training record of the same part
        index = (hash64(keys, _OTHER) % self.order.counts[draw.part].astype(np.uint64)).astype(np.int64)
        other = self._collate(Draw(draw.part, draw.epoch, index), hash64(keys, _OTHER, 1))
        seeds = hash64(keys, _SHARE)
        share = np.array([np.random.default_rng(seed).beta(self.mixup, self.mixup) for seed in seeds], np.float32)
        wide = share.reshape(-1, 1, 1, 1)
        return batch | {
            "images": wide * batch["images"] + (1 - wide) * other["images"],
            "weights": share * batch["weights"] + (1 - share) * other["weights"],
            "other_labels": other["labels"],
            "share": share,
        }

    def _collate(self, draw: Draw, keys: np.ndarray) -> Batch:
        names = [name for part in self.parts for name in part.columns]
        columns: dict[str, list[np.ndarray]] = {name: [np.empty(0)] * len(draw.part) for name in names}
        for number, store in enumerate(self.stores.values()):
            here = np.flatnonzero(draw.part == number)
            for name in names if len(here) else ():
                for row, value in zip(here, store.read(name, TRAIN, draw.index[here]), strict=True):
                    columns[name][row] = value
        return self._batch(Rows(columns, keys, training=True))

    def _batch(self, rows: Rows) -> Batch:
        return {name: array for part in self.parts for name, array in part.collate(rows).items()}

    def num_heldout(self, part: str) -> int:
        return len(self.stores[part].rows[HELDOUT])

    def heldout(self, part: str, index: np.ndarray) -> Batch:
        store, last = self.stores[part], self.num_heldout(part) - 1
        names = [name for one in self.parts for name in one.columns]
        columns = {name: store.read(name, HELDOUT, np.minimum(index, last)) for name in names}
        batch = self._batch(Rows(columns, hash64(_HELD, index), training=False))
        beyond = index > last
        if self.mixup:
            batch |= {"other_labels": batch["labels"], "share": np.ones(len(index), np.float32)}
        if "weights" in batch:
            batch["weights"] = np.where(beyond.reshape(-1, *[1] * (batch["weights"].ndim - 1)), 0, batch["weights"])
        return batch


def heldout_indices(batches: Batches, part: str, batch_size: int, limit: int) -> Iterator[np.ndarray]:
    """The rows of each held-out batch of a part; with a limit so many batches, spread over the split."""
    rows = batches.num_heldout(part)
    # Where rows carry no weight, there is no padding: a last part of a batch is left out.
    count = -(-rows // batch_size) if "weights" in batches.shapes() else max(rows // batch_size, 1)
    for number in np.unique(np.linspace(0, count - 1, limit or count).astype(int)):
        yield np.arange(number * batch_size, (number + 1) * batch_size)
