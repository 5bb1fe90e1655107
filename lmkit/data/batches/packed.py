"""Batches of packed rows: whole documents beside each other, and padding that weighs nothing."""

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import Curriculum, DataConfig, Packing
from lmkit.config.sections.objective import ObjectiveConfig
from lmkit.data.batches.fields import Batch
from lmkit.data.batches.windows import Origin, TextData, Windows
from lmkit.data.cache import open_cache
from lmkit.data.order.mixing import Course
from lmkit.data.order.packing import Layout, Pieces, pack
from lmkit.data.order.sampler import Order
from lmkit.data.store.tokens import TRAIN, TokenStore
from lmkit.data.tokens.tokenizer import Tokenizer


def build_windows(
    data: TextData, config: DataConfig, objective: ObjectiveConfig, seed: int, batch_size: int
) -> Windows:
    """The batches of text: windows, or packed rows, whose layouts are made where they are not in the cache yet."""
    rest = (data.weights, data.tokenizer, config, objective, seed, batch_size)
    if config.packing is Packing.windows:
        return Windows(data.stores, *rest)
    cache = open_cache(config.cache_dir)
    layouts = {
        name: pack(store.lazy_ends(TRAIN), config.seq_len, cache, store.identity) for name, store in data.stores.items()
    }
    return Packed(data.stores, layouts, *rest)


class Packed(Windows):
    """Rows of a packing: the next token is predicted. What is held out stays windows, each token of it once."""

    def __init__(
        self, stores: dict[str, TokenStore], layouts: dict[str, Layout], weights: dict[str, float],
        tokenizer: Tokenizer, config: DataConfig, objective: ObjectiveConfig, seed: int, batch_size: int = 0,
    ):  # fmt: skip
        self.layouts = layouts
        super().__init__(stores, weights, tokenizer, config, objective, seed, batch_size)

    def _order(self, course: Course) -> Order:
        layouts = self.layouts.values()
        for name, layout in self.layouts.items():
            if not layout.num_rows:
                raise ConfigError(f"data: {name!r} leaves no document to train on; add text")
        rising = self.config.curriculum is Curriculum.short_first
        lengths = [layout.longest() for layout in layouts] if rising else []
        return Order([layout.num_rows for layout in layouts], course, self.seed, lengths)

    def train(self, step: int, batch_size: int, rows: np.ndarray) -> Batch:
        draw, end = self.order.at(step * batch_size + rows), self.tokenizer.end_id
        shape = (len(rows), self.config.seq_len)
        inputs, targets = np.full(shape, end, np.int32), np.full(shape, end, np.int32)
        weights, segments = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
        for number, (name, store) in enumerate(self.stores.items()):
            here = np.flatnonzero(draw.part == number)
            found = [self.layouts[name].row(int(index)) for index in draw.index[here]]
            if not found:
                continue
            places = [(row, *one) for row, pieces in zip(here, found, strict=True) for one in _places(pieces)]
            starts, lengths = (np.concatenate(column) for column in zip(*found, strict=True))
            pieces, good = store.try_read(TRAIN, starts, starts + lengths + 1)
            weighs = store.weights(TRAIN, starts, starts + lengths + 1)
            for (row, n, at), tokens, weight, there in zip(places, pieces, weighs, good, strict=True):
                place = slice(at, at + len(tokens) - 1)
                inputs[row, place], targets[row, place] = tokens[:-1], tokens[1:]
                weights[row, place], segments[row, place] = weight[1:] * there, n
        batch = {"inputs": inputs, "targets": targets, "weights": weights}
        return batch | ({"segment_ids": segments} if self.config.isolate_documents else {})

    def origin(self, row: int) -> Origin:
        part, epoch, index = (int(column[0]) for column in self.order.at(np.array([row])))
        name = list(self.stores)[part]
        starts, lengths = self.layouts[name].row(index)
        pieces = list(zip(starts.tolist(), (lengths + 1).tolist(), strict=True))
        return Origin(name, epoch, index, int(self.order.counts[part]), pieces)


def _places(pieces: Pieces) -> list[tuple[int, int]]:
    """The number of each piece in its row, from 1, and where it begins."""
    return list(enumerate((np.cumsum(pieces.length) - pieces.length).tolist(), 1))
