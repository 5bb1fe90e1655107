"""Global batches as pure functions of (seed, step): windows of text, and labelled records.

Both kinds answer the same questions, so the loader, the step and the evaluation need not know which one they read.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.objective import ObjectiveConfig, ObjectiveKind
from lmkit.data.batches.fields import Batch, Shapes
from lmkit.data.batches.masking import Masker, Pairer, SpanCutter
from lmkit.data.keyed import HELD, OTHER, ROW, hash64
from lmkit.data.order.mixing import Course, course_of
from lmkit.data.order.sampler import Order, Sampler
from lmkit.data.store.tokens import HELDOUT, TRAIN, TokenStore
from lmkit.data.tokens.tokenizer import Tokenizer


class TextData(NamedTuple):
    """Everything read by a run on text: the tokenizer, the stores of the mixture with their weights, what to tell.

    cleaned: of each part that was cleaned, what became of its documents.
    """

    tokenizer: Tokenizer
    stores: dict[str, TokenStore]
    weights: dict[str, float]
    notes: tuple[str, ...] = ()
    cleaned: Mapping[str, dict[str, int]] = {}


class Origin(NamedTuple):
    """Where a training row comes from."""

    part: str
    epoch: int
    index: int  # the element of its part that it is
    count: int  # of so many
    pieces: list[
        tuple[int, int]
    ]  # of text: where each begins in the training split, and its tokens, the last target too


class Batches(Protocol):
    """Where a run's batches come from. Rows are numbers within a global batch."""

    order: Order
    evaluated: str  # the split that num_heldout and heldout are of

    def shapes(self) -> Shapes:
        """(shape, dtype) of each array without its batch dim."""
        ...

    def train(self, step: int, batch_size: int, rows: np.ndarray) -> Batch:
        """Some rows of the global batch of a step."""
        ...

    def origin(self, row: int) -> Origin:
        """Where a row of the whole run comes from: number step * batch_size + row of the batch."""
        ...

    def lost(self) -> dict[str, int]:
        """Rows that were left out, with data.on_corrupt=skip, by what is wrong with the files that hold them."""
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

    evaluated = HELDOUT  # the split that num_heldout and heldout are of

    def __init__(
        self, stores: dict[str, TokenStore], weights: dict[str, float], tokenizer: Tokenizer, config: DataConfig,
        objective: ObjectiveConfig, seed: int, batch_size: int = 0,
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
        if (self.masker or self.cutter) and any(store.weighed for store in stores.values()):
            raise ConfigError(
                f"objective.kind={objective.kind.name}: tokens have weights of their own (data.weight_key), which only "
                f"causal_lm heeds; leave data.weight_key out"
            )
        self.order = self._order(course_of(config, weights, batch_size))

    def _order(self, course: Course) -> Order:
        sizes = [store.num_tokens(TRAIN) for store in self.stores.values()]
        for name, size in zip(self.stores, sizes, strict=True):
            if size <= self.config.seq_len:
                raise ConfigError(
                    f"data.seq_len={self.config.seq_len}: the training text of {name!r} has only {size} tokens; "
                    f"set data.seq_len={max(size - 1, 1)} or less, or add text"
                )
        self.sampler = Sampler(sizes, course, self.stride, self.seed)
        return self.sampler.order

    def shapes(self) -> Shapes:
        length, ints, floats = self.config.seq_len, np.int32, np.float32
        if self.cutter is not None:
            target = (self.cutter.target_len,)
            return {"source": ((length,), ints), "inputs": (target, ints), "targets": (target, ints),
                    "weights": (target, floats)}  # fmt: skip
        shapes: Shapes = {"inputs": ((length,), ints), "targets": ((length,), ints), "weights": ((length,), floats)}
        if self.masker is not None:
            positions = (self.masker.positions(length),)
            shapes |= {
                "masked_positions": (positions, ints),
                "targets": (positions, ints),
                "weights": (positions, floats),
            }
        if self.pairer is not None:
            shapes |= {"types": ((length,), ints), "next_sentence": ((), ints)}
        if self.config.isolate_documents or self.pairer is not None:
            shapes["segment_ids"] = ((length,), ints)
        return shapes

    def train(self, step: int, batch_size: int, rows: np.ndarray) -> Batch:
        numbers = step * batch_size + rows
        part, _, start = self.sampler.at(numbers)
        tokens, weights = self._read(part, start)
        keys = hash64(self.seed, ROW, numbers)
        others = None
        if self.pairer is not None:  # the second half of some rows comes from another place of the same part
            room = self.sampler.sizes[part] - self.length
            others, there = self._read(
                part, (hash64(keys, OTHER) % np.maximum(room, 1).astype(np.uint64)).astype(np.int64)
            )
            weights *= there
        return self._make(tokens, weights, keys, others)

    def origin(self, row: int) -> Origin:
        part, epoch, start = (int(column[0]) for column in self.sampler.at(np.array([row])))
        index, count = start // self.stride, int(self.order.counts[part])
        return Origin(list(self.stores)[part], epoch, index, count, [(start, self.length)])

    def _read(self, part: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows [B, length] and what each of their tokens weighs: 0 in a row that could not be read."""
        tokens = np.empty((len(part), self.length), np.int32)
        weights = np.empty(tokens.shape, np.float32)
        for number, store in enumerate(self.stores.values()):
            if (here := part == number).any():
                tokens[here], good = store.try_windows(TRAIN, start[here], self.length)
                weights[here] = np.stack(store.weights(TRAIN, start[here], start[here] + self.length)) * good[:, None]
        return tokens, weights

    def lost(self) -> dict[str, int]:
        return {what: count for store in self.stores.values() for what, count in store.lost.items()}

    def _make(self, tokens: np.ndarray, weights: np.ndarray, keys: np.ndarray, others: np.ndarray | None) -> Batch:
        """Windows [B, length] and what each token weighs, 0 where there is none, to a batch."""
        end, isolate, real = self.tokenizer.end_id, self.config.isolate_documents, weights > 0
        if self.cutter is not None:
            batch = self.cutter(tokens, keys)
            return batch | {"weights": batch["weights"] * real.all(axis=1, keepdims=True)}
        if self.masker is None:
            return make_batch(tokens, end, isolate, weights[:, 1:])
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
        size = self.stores[part].num_tokens(self.evaluated)
        if self.cutter is not None or self.pairer is not None:  # whole rows only
            return max((size - self.length) // self.stride + 1, 1)
        return -(-(size - 1) // self.stride)

    def heldout(self, part: str, index: np.ndarray) -> Batch:
        store = self.stores[part]
        size = store.num_tokens(self.evaluated)
        tokens, weights = self._heldout_windows(store, index * self.stride, size)
        keys = hash64(HELD, index)  # the same in every evaluation
        others = None
        if self.pairer is not None:
            room = max(size - self.length, 1)
            others, _ = self._heldout_windows(store, (hash64(keys, OTHER) % np.uint64(room)).astype(np.int64), size)
        return self._make(tokens, weights, keys, others)

    def _heldout_windows(self, store: TokenStore, starts: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.full((len(starts), self.length), self.tokenizer.end_id, np.int32)
        weights = np.zeros(tokens.shape, np.float32)
        for row, start in enumerate(starts.tolist()):
            if (length := min(self.length, size - start)) > 0:
                (found,), (good,) = store.try_windows(self.evaluated, [start], length)
                tokens[row, :length] = found
                weights[row, :length] = store.weights(self.evaluated, [start], [start + length])[0] * good
        return tokens, weights


def heldout_indices(batches: Batches, part: str, batch_size: int, limit: int) -> Iterator[np.ndarray]:
    """The rows of each held-out batch of a part; with a limit so many batches, spread over the split."""
    rows = batches.num_heldout(part)
    # Where rows carry no weight, there is no padding: a last part of a batch is left out.
    count = -(-rows // batch_size) if "weights" in batches.shapes() else max(rows // batch_size, 1)
    for number in np.unique(np.linspace(0, count - 1, limit or count).astype(int)):
        yield np.arange(number * batch_size, (number + 1) * batch_size)
