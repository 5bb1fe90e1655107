"""Where labelled records come from: fields with stable names, readable as often as needed."""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec
import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.data import DataConfig, Source
from lmkit.data.images import read_idx
from lmkit.data.sources import File, expand, open_parquet

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".tsv", ".parquet")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"  # MNIST's names


class Record(NamedTuple):
    """One example: its fields, the folder that paths in it start from, and where it stands in its file."""

    name: str
    fields: dict[str, Any]
    place: str
    folder: str
    heldout: bool | None  # None: by the hash of its name

    def field(self, name: str, key: str) -> Any:
        """A field. Raises ConfigError, naming those there are and the key that chooses another."""
        value = self.fields.get(name)
        if value is None or (isinstance(value, float) and np.isnan(value)):
            has = ", ".join(str(field) for field in self.fields)
            raise ConfigError(f"data: {self.place} has no {name!r}, it has: {has}; set data.{key}=")
        return value

    def path(self, name: str, key: str) -> str:
        """A field that holds the path of a file, from the record's folder."""
        value = str(self.field(name, key))
        return value if "://" in value or value.startswith("/") else f"{self.folder}/{value}"


class RecordSource:
    """The records of a part of the mixture, in a fixed order."""

    def __init__(self, kind: Source, paths: list[str], heldout_paths: list[str], config: DataConfig):
        self.kind, self.config = kind, config
        self.files = [(file, None if not heldout_paths else False) for file in _files(kind, paths, "data.paths")]
        self.files += [(file, True) for file in _files(kind, heldout_paths, "data.heldout_paths")]
        if kind is Source.idx and not heldout_paths and any(_is_test(file) for file, _ in self.files):
            self.files = [(file, _is_test(file)) for file, _ in self.files]
        self.num_bytes = sum(file.size for file, _ in self.files)

    def fingerprint(self) -> str:
        """Changes when a file is added, removed or modified; reads no contents."""
        rows = [(file.name, file.size, file.stamp, side) for file, side in self.files]
        return hashlib.sha256(json.dumps([self.kind.name, rows]).encode()).hexdigest()

    def records(self) -> Iterator[Record]:
        """Every record. Raises ConfigError for what cannot be read, naming the place."""
        config = self.config
        if self.kind is Source.digits:
            yield from _digits(config)
        for file, side in self.files:
            name, folder = file.name, file.url.rpartition("/")[0].removeprefix("file://")
            if self.kind is Source.image_folder:
                label = PurePosixPath(file.url).parent.name
                fields = {config.image_key: PurePosixPath(file.url).name, config.label_key: label}
                yield Record(name, fields, name, folder, side)
            elif self.kind is Source.idx:
                yield from _idx(file, config, side)
            else:
                for number, fields in _rows(file):
                    yield Record(f"{name}:{number}", fields, f"{file.url} record {number}", folder, side)


def _files(kind: Source, paths: list[str], key: str) -> list[File]:
    """The files of the paths, sorted. Raises ConfigError where a path has none of the kind's."""
    suffixes = {Source.image_folder: IMAGE_SUFFIXES, Source.idx: (_IMAGES, f"{_IMAGES}.gz")}.get(kind, RECORD_SUFFIXES)
    if kind is Source.digits:
        return []
    files: dict[str, File] = {}
    for path in paths:
        found = [file for file in expand(path, suffixes) if file.url.endswith(suffixes)]
        if not found:
            raise ConfigError(f"{key}: {path!r} matches no file that ends in one of {', '.join(suffixes)}")
        files |= {file.url: file for file in found}
    if not files and key == "data.paths":
        raise ConfigError(f"data.source={kind.name}: no paths: set data.paths=[FILE, FOLDER or GLOB, ...]")
    return [files[url] for url in sorted(files)]


def _is_test(file: File) -> bool:
    """Whether a file is of MNIST's own test set."""
    return file.url.rpartition("/")[2].startswith("t10k")


def _digits(config: DataConfig) -> Iterator[Record]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("data.source=digits needs scikit-learn: pip install 'lmkit[metrics]'") from error
    images, labels = load_digits(return_X_y=True)  # 0 to 16
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        pixels = np.round(image.reshape(8, 8, 1) * (255 / 16)).astype(np.uint8)
        fields = {config.image_key: pixels, config.label_key: str(label)}
        yield Record(f"digits:{number}", fields, f"digit {number}", "", None)


def _idx(file: File, config: DataConfig, side: bool | None) -> Iterator[Record]:
    """A pair of files."""
    place = file.url.removeprefix("file://")
    images, labels = read_idx(place), read_idx(place.replace(_IMAGES, _LABELS))
    if len(images) != len(labels):
        raise ConfigError(f"data: {file.url} has {len(images)} images, its file of labels has {len(labels)}")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        fields = {config.image_key: image[..., None], config.label_key: str(label)}
        yield Record(f"{file.name}:{number}", fields, f"{file.url} image {number}", "", side)


def _rows(file: File) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, fields) of a file of records."""
    try:
        if file.url.endswith(".parquet"):
            parquet = open_parquet(file)
            number = 0
            for batch in parquet.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields
            return
        with fsspec.open(file.url, "rb") as raw:
            lines: Any = gzip.GzipFile(fileobj=raw) if file.url.endswith(".gz") else raw  # type: ignore[arg-type]
            if file.url.endswith((".csv", ".tsv")):
                text = io.TextIOWrapper(lines, "utf-8", errors="replace", newline="")
                yield from enumerate(csv.DictReader(text, delimiter="\t" if file.url.endswith(".tsv") else ","), 1)
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _object(line, f"{file.url} line {number}")
    except OSError as error:
        raise ConfigError(f"data: cannot read {file.url}: {error.strerror or error}") from error


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"data: {place} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"data: {place} is a {type(fields).__name__}, not an object with fields")
    return fields
