"""Where labelled records come from: fields with stable names, readable as often as needed."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.data.sources.files import PACKED, File, damage, expand, opened, read_bytes
from lmkit.data.sources.formats import Bad, decoded, lines_of, open_parquet, parse_object
from lmkit.data.sources.images import read_idx

_LINES = (".jsonl", ".csv", ".tsv")
RECORD_SUFFIXES = (*_LINES, *(f"{one}{packed}" for one in _LINES for packed in PACKED), ".parquet")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
_TABLE = ".trans.txt"  # LibriSpeech's: a line for each sound of a folder, its name and what is said
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"  # MNIST's names

_SUFFIXES = {
    Source.image_folder: IMAGE_SUFFIXES, Source.idx: (_IMAGES, f"{_IMAGES}.gz"),
    Source.audio_folder: (*SOUND_SUFFIXES, ".txt"),
}  # fmt: skip


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

    def media(self, name: str, key: str) -> tuple[str, bytes | None]:
        """An image or a sound: (path or place, its bytes, or None of a local file).

        The field is a path from the record's folder, a URL, bytes, or {bytes, path} as Hugging Face's tables have it.
        """
        value = self.field(name, key)
        if isinstance(value, dict) and ("bytes" in value or "path" in value):
            value = value.get("bytes") or value.get("path") or ""
        if isinstance(value, bytes):
            return self.place, value
        value = str(value)
        path = value if "://" in value or value.startswith("/") else f"{self.folder}/{value}"
        return path, read_bytes(path) if "://" in path else None


class RecordSource:
    """The records of a part of the mixture, in a fixed order."""

    def __init__(self, kind: Source, paths: list[str], heldout_paths: list[str], config: DataConfig):
        self.kind, self.config = kind, config
        side = False if heldout_paths else None
        self.files: list[tuple[File, bool | None]] = [(file, side) for file in _files(kind, paths, "data.paths")]
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
        if self.kind is Source.audio_folder:
            yield from _sounds(self.files, config)
            return
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
    suffixes = _SUFFIXES.get(kind, RECORD_SUFFIXES)
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


def _sounds(files: list[tuple[File, bool | None]], config: DataConfig) -> Iterator[Record]:
    """Each sound with what is said in it: NAME.txt beside it, or a line of its folder's *.trans.txt."""
    said: dict[str, str] = {}
    for file, _ in files:
        folder, _, name = file.url.rpartition("/")
        if not name.endswith(".txt"):
            continue
        text = decoded(read_bytes(file.url))
        if isinstance(text, Bad):
            raise ConfigError(f"data: {file.url} {text.reason}")
        if name.endswith(_TABLE):
            rows = (line.partition(" ") for line in text.splitlines() if line.strip())
            said |= {f"{folder}/{one}": words.strip() for one, _, words in rows}
        else:
            said[file.url.removesuffix(".txt")] = text.strip()
    for file, side in files:
        if file.url.endswith(".txt"):
            continue
        text, folder = said.get(file.url.rpartition(".")[0]), file.url.rpartition("/")[0].removeprefix("file://")
        if text is None:
            raise ConfigError(
                f"data: {file.url} has no transcript: neither a .txt of its name nor a line of a *{_TABLE} stands by it"
            )
        fields = {config.audio_key: PurePosixPath(file.url).name, config.target_key: text}
        yield Record(file.name, fields, file.url, folder, side)


def _rows(file: File) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, fields) of a file of records."""
    number, plain = 0, file.url.removesuffix(".gz").removesuffix(".zst")
    try:
        with opened(file.url, packed=not plain.endswith(".parquet")) as handle:
            if plain.endswith(".parquet"):
                for batch in open_parquet(handle, file.url).iter_batches(batch_size=1024):
                    for fields in batch.to_pylist():
                        number += 1
                        yield number, fields
            elif plain.endswith((".csv", ".tsv")):
                text = io.TextIOWrapper(handle, "utf-8", errors="replace", newline="")
                rows = csv.DictReader(text, delimiter="\t" if plain.endswith(".tsv") else ",")
                for number, fields in enumerate(rows, 1):
                    yield number, fields
            else:
                for number, line in lines_of(handle):
                    fields = parse_object(line)
                    if isinstance(fields, Bad):
                        raise ConfigError(f"data: {file.url} line {number} {fields.reason}")
                    yield number, fields
    except Exception as error:
        raise ConfigError(f"data: {file.url} {damage(error)} (after record {number})") from error
