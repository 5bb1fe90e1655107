"""Global batches of labelled records as pure functions of (seed, step)."""

from collections.abc import Sequence

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import Curriculum, DataConfig
from lmkit.data.batches.fields import Batch, Field, RecordRows, Shapes
from lmkit.data.batches.windows import Origin
from lmkit.data.keyed import HELD, OTHER, ROW, SHARE, hash64
from lmkit.data.order.mixing import course_of
from lmkit.data.order.sampler import Draw, Order
from lmkit.data.store.records import RecordStore
from lmkit.data.store.tokens import HELDOUT, TRAIN


class Records:
    """Labelled records, every one once an epoch."""

    evaluated = HELDOUT  # the split that num_heldout and heldout are of

    def __init__(
        self, stores: dict[str, RecordStore], weights: dict[str, float], fields: Sequence[Field], config: DataConfig,
        seed: int, batch_size: int = 0,
    ):  # fmt: skip
        self.stores, self.fields, self.config, self.seed = stores, fields, config, seed
        counts = [len(store.rows[TRAIN]) for store in stores.values()]
        rising = config.curriculum is Curriculum.short_first
        lengths = [self._lengths(store) for store in stores.values()] if rising else []
        self.order = Order(counts, course_of(config, weights, batch_size), seed, lengths)
        self.mixup = config.augment.mixup

    def shapes(self) -> Shapes:
        shapes = {name: shape for field in self.fields for name, shape in field.shapes.items()}
        return shapes | ({"other_labels": ((), np.int32), "share": ((), np.float32)} if self.mixup else {})

    def train(self, step: int, batch_size: int, rows: np.ndarray) -> Batch:
        numbers = step * batch_size + rows
        draw = self.order.at(numbers)
        keys = hash64(self.seed, ROW, numbers)
        batch = self._collate(draw, keys)
        if not self.mixup:
            return batch
        # Zhang et al. 2018, equation 2; the partner is any other training record of the same part
        index = (hash64(keys, OTHER) % self.order.counts[draw.part].astype(np.uint64)).astype(np.int64)
        other = self._collate(Draw(draw.part, draw.epoch, index), hash64(keys, OTHER, 1))
        seeds = hash64(keys, SHARE)
        share = np.array([np.random.default_rng(seed).beta(self.mixup, self.mixup) for seed in seeds], np.float32)
        wide = share.reshape(-1, 1, 1, 1)
        return batch | {
            "images": wide * batch["images"] + (1 - wide) * other["images"],
            "weights": share * batch["weights"] + (1 - share) * other["weights"],
            "other_labels": other["labels"],
            "share": share,
        }

    def _lengths(self, store: RecordStore) -> np.ndarray:
        """int64: how long each training record is, by the first field whose records differ in that."""
        for field in self.fields:
            if ragged := [name for name, column in field.columns.items() if column.shape is None]:
                return np.sum([store.lengths(name, TRAIN) for name in ragged], axis=0)
        raise ConfigError(
            f"data.curriculum={self.config.curriculum.name}: these records are all of one length; set "
            f"data.curriculum=none"
        )

    def origin(self, row: int) -> Origin:
        part, epoch, index = (int(column[0]) for column in self.order.at(np.array([row])))
        return Origin(list(self.stores)[part], epoch, index, int(self.order.counts[part]), [])

    def _collate(self, draw: Draw, keys: np.ndarray) -> Batch:
        names = [name for field in self.fields for name in field.columns]
        columns: dict[str, list[np.ndarray]] = {name: [np.empty(0)] * len(draw.part) for name in names}
        for number, store in enumerate(self.stores.values()):
            if len(here := np.flatnonzero(draw.part == number)):
                for name, values in store.rows_of(names, TRAIN, draw.index[here]).items():
                    for row, value in zip(here, values, strict=True):
                        columns[name][row] = value
        return self._batch(RecordRows(columns, keys, training=True))

    def _batch(self, rows: RecordRows) -> Batch:
        return {name: array for field in self.fields for name, array in field.collate(rows).items()}

    def lost(self) -> dict[str, int]:
        return {what: count for store in self.stores.values() for what, count in store.lost.items()}

    def num_heldout(self, part: str) -> int:
        return len(self.stores[part].rows[self.evaluated])

    def heldout(self, part: str, index: np.ndarray) -> Batch:
        store, last = self.stores[part], self.num_heldout(part) - 1
        names = [name for one in self.fields for name in one.columns]
        columns = store.rows_of(names, self.evaluated, np.minimum(index, last))
        batch = self._batch(RecordRows(columns, hash64(HELD, index), training=False))
        beyond = index > last
        if self.mixup:
            batch |= {"other_labels": batch["labels"], "share": np.ones(len(index), np.float32)}
        if "weights" in batch:
            batch["weights"] = np.where(beyond.reshape(-1, *[1] * (batch["weights"].ndim - 1)), 0, batch["weights"])
        return batch
