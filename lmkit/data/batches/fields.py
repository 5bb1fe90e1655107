"""What records are made of: each `Field` turns keys of a record into columns of a store, and rows of those into arrays.

An objective's records are a list of fields: [Images, Labels]. B rows, T tokens, S source tokens, F frames, M mel
bands. Token rows are right-padded; `segment_ids` are 1 on tokens and 0 on padding.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lmkit.config.base import ConfigError, nearest
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.families import ViTConfig
from lmkit.data.sources.images import augment, read_image
from lmkit.data.sources.records import Record
from lmkit.data.store.records import Column
from lmkit.data.tokens.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], type]]  # without the batch dim
IGNORED = -1


class RecordRows(NamedTuple):
    """Rows of a store to be made a batch."""

    columns: Mapping[str, list[np.ndarray]]
    keys: np.ndarray  # uint64 [B]: of each row's randomness
    training: bool


class Field(Protocol):
    """One field of a record, such as an image or a text.

    limits: columns, and so many values that their rows may have together; longer ones are cut.
    """

    shapes: Shapes
    limits: dict[tuple[str, ...], int]

    @property
    def columns(self) -> dict[str, Column]: ...

    def texts(self, record: Record) -> list[str]:
        """What a tokenizer is trained on."""
        ...

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        """The columns of each record. Raises ConfigError for a field that is missing or cannot be read."""
        ...

    def collate(self, rows: RecordRows) -> Batch:
        """Arrays [B, ...] as in `shapes`."""
        ...


class _Silent:
    """A field without text, and of one size."""

    limits: dict[tuple[str, ...], int] = {}  # noqa: RUF012

    def texts(self, record: Record) -> list[str]:
        return []


def pad_rows(rows: Sequence[np.ndarray], length: int, fill: int | float, dtype: type = np.int32) -> np.ndarray:
    """[B, length] of one-dimensional rows, cut or filled at their ends."""
    out = np.full((len(rows), length), fill, dtype)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row[:length]
    return out


def filled(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """int32 [B, length]: 1 where a row has an element, 0 on padding."""
    lengths = np.array([len(row) for row in rows])
    return (np.arange(length) < lengths[:, None]).astype(np.int32)


class Texts:
    """start text end, or start text end pair end, as `inputs` [B, T], with `types` 1 on the pair.

    Between the two stand as many ends as the tokenizer says. A model of fewer than two `kinds` gets no `types`.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, kinds: int = 2):
        self.config, self.tokenizer, length = config, tokenizer, config.seq_len
        self.typed = bool(config.pair_key) and kinds > 1
        self.keys = {"text": "text_key"} | ({"pair": "pair_key"} if config.pair_key else {})
        self.columns = {name: Column("int32", None) for name in self.keys}
        self.limits = {tuple(self.keys): length - 1 - len(self.keys)}
        self.shapes: Shapes = {"inputs": ((length,), np.int32), "segment_ids": ((length,), np.int32)}
        if self.typed:
            self.shapes["types"] = ((length,), np.int32)

    def texts(self, record: Record) -> list[str]:
        return [text_of(record, getattr(self.config, key), key) for key in self.keys.values()]

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        return encode_texts(self.tokenizer, list(self.keys), [self.texts(record) for record in records])

    def collate(self, rows: RecordRows) -> Batch:
        length, start, end = self.config.seq_len, [self.tokenizer.start_id], [self.tokenizer.end_id]
        between = end * self.tokenizer.pair_ends
        firsts, wholes = [], []
        for pieces in zip(*(rows.columns[name] for name in self.keys), strict=True):
            pieces = fit(list(pieces), length - 1 - (len(pieces) - 1) * len(between) - len(end))
            whole = [start, *(x for piece in pieces[:-1] for x in (piece, between)), pieces[-1], end]
            wholes.append(np.concatenate(whole))
            firsts.append(len(pieces[0]) + 1 + len(between))
        inside = filled(wholes, length)
        batch = {"inputs": pad_rows(wholes, length, self.tokenizer.end_id), "segment_ids": inside}
        if self.typed:
            batch["types"] = ((np.arange(length) >= np.array(firsts)[:, None]) & (inside == 1)).astype(np.int32)
        return batch


def fit(pieces: list[np.ndarray], room: int) -> list[np.ndarray]:
    """One or two pieces cut at their ends to `room` tokens in all: of two the longer one first."""
    room = max(room, 0)
    if len(pieces) == 1:
        return [pieces[0][:room]]
    first, second = pieces
    half = room - room // 2
    if len(first) <= half:
        return [first, second[: room - len(first)]]
    kept = max(half, room - len(second))
    return [first[:kept], second[: room - min(kept, len(first))]]


def encode_texts(tokenizer: Tokenizer, names: Sequence[str], texts: list[list[str]]) -> list[Batch]:
    """Each row's texts tokenised in one go, by the names of their columns."""
    ids = iter(tokenizer.encode_batch([text for row in texts for text in row]))
    return [{name: next(ids) for name in names} for _ in texts]


def text_of(record: Record, name: str, key: str) -> str:
    """A field that must be text."""
    value = record.field(name, key)
    if not isinstance(value, str):
        raise ConfigError(
            f"data: {record.place} has a {type(value).__name__} under {name!r}, not a text: {value!r:.60}"
        )
    return value


class Images(_Silent):
    """float32 `images` [B, H, W, C], (pixel / 255 - mean) / std, augmented in training."""

    def __init__(self, config: DataConfig, model: ViTConfig):
        self.config, self.model = config, model
        shape = (model.image_size, model.image_size, model.num_channels)
        self.columns = {"image": Column("uint8", shape)}
        self.shapes: Shapes = {"images": (shape, np.float32)}

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        return [{"image": self._pixels(record)} for record in records]

    def _pixels(self, record: Record) -> np.ndarray:
        config, shape = self.config, self.columns["image"].shape
        value = record.field(config.image_key, "image_key")
        if not isinstance(value, np.ndarray):
            path, content = record.media(config.image_key, "image_key", config.allow_roots)
            size, channels = self.model.image_size, self.model.num_channels
            return read_image(path, size, channels, resize=config.resize, content=content)
        if value.shape != shape:
            raise ConfigError(
                f"data: {record.place} has {' x '.join(map(str, value.shape))} pixels and channels, the model takes "
                f"{' x '.join(map(str, shape or ()))}: set model.image_size={value.shape[0]} "
                f"model.num_channels={value.shape[2]}"
            )
        return value

    def collate(self, rows: RecordRows) -> Batch:
        images, how = np.stack(rows.columns["image"]), self.config.augment
        if rows.training and (how.flip or how.crop_pixels or how.rotate_degrees or how.scale):
            images = augment(
                images, rows.keys, flip=how.flip, crop_pixels=how.crop_pixels, rotate_degrees=how.rotate_degrees,
                scale=how.scale,
            )  # fmt: skip
        scaled = images.astype(np.float32) / 255.0
        return {"images": (scaled - np.float32(self.config.image_mean)) / np.float32(self.config.image_std)}


class Labels(_Silent):
    """int32 `labels` [B], and in training the `weights` [B] of their classes."""

    def __init__(self, config: DataConfig, labels: list[str], weights: np.ndarray | None = None):
        self.config, self.names, self.class_weights = config, labels, weights
        self.columns = {"label": Column("int32", ())}
        self.shapes: Shapes = {"labels": ((), np.int32), "weights": ((), np.float32)}

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        return [{"label": np.int32(number_of(label_of(r, self.config), self.names, r))} for r in records]  # type: ignore

    def collate(self, rows: RecordRows) -> Batch:
        labels = np.array(rows.columns["label"], np.int32)
        weighed = rows.training and self.class_weights is not None
        weights = self.class_weights[labels] if weighed else np.ones(len(labels))  # type: ignore[index]
        return {"labels": labels, "weights": np.asarray(weights, np.float32)}


def label_of(record: Record, config: DataConfig) -> str:
    """The name of a record's class."""
    value = record.field(config.label_key, "label_key")
    if isinstance(value, list | dict | bytes):
        raise ConfigError(f"data: {record.place} has a {type(value).__name__} under {config.label_key!r}, not a class")
    if not str(value).strip():
        raise ConfigError(f"data: {record.place} has an empty {config.label_key!r}: give its class, or leave it out")
    return str(value)


def number_of(label: str, names: list[str], record: Record) -> int:
    """The number of a class. Raises ConfigError, naming the nearest, where there is no such class."""
    if label not in names:
        raise ConfigError(
            f"data: {record.place} has the label {label!r}, which is none of the {len(names)} classes of data.labels "
            f"or of the training records: {', '.join(names[:12])}.{nearest(label, names)}"
        )
    return names.index(label)


class Numbers(_Silent):
    """float32 `targets` [B] and `weights` [B]."""

    def __init__(self, config: DataConfig):
        self.config = config
        self.columns = {"number": Column("float32", ())}
        self.shapes: Shapes = {"targets": ((), np.float32), "weights": ((), np.float32)}

    def encode(self, records: Sequence[Record]) -> list[Batch]:
        rows = []
        for record in records:
            value = record.field(self.config.target_key, "target_key")
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                number = float("nan")
            if not abs(number) <= np.finfo(np.float32).max:  # NaN, too
                raise ConfigError(f"data: {record.place} has {value!r:.40} as {self.config.target_key!r}, not a number")
            rows.append({"number": np.float32(number)})
        return rows

    def collate(self, rows: RecordRows) -> Batch:
        targets = np.array(rows.columns["number"], np.float32)
        return {"targets": targets, "weights": np.ones_like(targets)}
