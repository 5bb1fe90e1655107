"""Where labelled records come from: fields with stable names, readable as often as needed."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.data.sources.files import File, ending, read_bytes
from lmkit.data.sources.formats import JSON, LINES, TABLES, Bad, decoded, half_in, read_rows, usable, with_packed
from lmkit.data.sources.images import read_idx
from lmkit.data.sources.listing import matching
from lmkit.data.sources.roots import resolve
from lmkit.data.sources.text import ranges

RECORD_SUFFIXES = (*with_packed(*LINES, *TABLES), ".parquet")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
_TABLE = ".trans.txt"  # LibriSpeech's: a line for each sound of a folder, its name and what is said
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"  # MNIST's names

_SUFFIXES = {
    Source.image_folder: IMAGE_SUFFIXES, Source.idx: (_IMAGES, f"{_IMAGES}.gz"),
    Source.audio_folder: (*SOUND_SUFFIXES, ".txt"),
}  # fmt: skip
_ASKED = {Source.records: with_packed(*JSON)}  # a folder has .json files that are no records

Take = Callable[[Bad], None]


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
        if bad := half_in(value, name):
            raise ConfigError(f"data: {self.place} {bad.reason}")
        return value

    def media(self, name: str, key: str, allow_roots: Sequence[str]) -> tuple[str, bytes]:
        """The bytes of an image or a sound, and where they come from.

        The field is a path or a URL below the record's folder or one of `allow_roots`, bytes, {bytes, path} as Hugging
        Face's tables have it, or a File that was found in a folder. Raises ConfigError for a path that leads elsewhere
        and for what cannot be read.
        """
        value = self.field(name, key)
        if isinstance(value, File):
            return value.url.removeprefix("file://"), read_bytes(value.url)
        if isinstance(value, dict) and ("bytes" in value or "path" in value):
            value = value.get("bytes") or value.get("path") or ""
        if isinstance(value, bytes):
            return self.place, value
        if not isinstance(value, str):
            what = type(value).__name__
            raise ConfigError(f"data: {self.place} has a {what} under {name!r}, not a path or bytes: {value!r:.60}")
        try:
            path = resolve(value, self.folder, allow_roots)
        except ConfigError as error:
            raise ConfigError(f"data: {self.place}: {name!r}: {error}") from error
        return path, read_bytes(path)


class RecordSource:
    """The records of a part of the mixture, in a fixed order."""

    def __init__(self, kind: Source, paths: list[str], heldout_paths: list[str], config: DataConfig):
        self.kind, self.config = kind, config
        self.left_out: Counter[str] = Counter()
        side = False if heldout_paths else None
        self.files: list[tuple[File, bool | None]] = [(file, side) for file in self._files(paths, "data.paths")]
        self.files += [(file, True) for file in self._files(heldout_paths, "data.heldout_paths")]
        if kind is Source.idx and not heldout_paths and any(_is_test(file) for file, _ in self.files):
            self.files = [(file, _is_test(file)) for file, _ in self.files]
        self.num_bytes = sum(file.size for file, _ in self.files)

    def _files(self, paths: list[str], key: str) -> list[File]:
        """The files of the paths, sorted. Raises ConfigError where a path has none of the kind's."""
        kind = self.kind
        suffixes, asked = _SUFFIXES.get(kind, RECORD_SUFFIXES), _ASKED.get(kind, ())
        if kind is Source.digits:
            return []
        files: dict[str, File] = {}
        for path in paths:
            roots = self.config.allow_roots
            found = matching(path, suffixes, self.left_out, asked=asked, allow_roots=roots, key=key, only=True)
            if kind is Source.image_folder:
                _check_depth(path, found)
            files |= {file.url: file for file in found}
        if not files and key == "data.paths":
            raise ConfigError(f"data.source={kind.name}: no paths: set data.paths=[FILE, FOLDER or GLOB, ...]")
        return [files[url] for url in sorted(files)]

    def fingerprint(self) -> str:
        """Changes when a file is added, removed or modified; reads no contents."""
        rows = [(file.name, file.size, file.stamp, side) for file, side in self.files]
        return hashlib.sha256(json.dumps([self.kind.name, rows]).encode()).hexdigest()

    def num_parts(self, part_bytes: int, most: int) -> int:
        """How many writers it can have of `part_bytes` or more each: the same wherever it is built."""
        return max(min(len(self._pieces()), self.num_bytes // part_bytes, most), 1)

    def _pieces(self) -> list[tuple[File, bool | None]]:
        """The files, large ones of lines cut in ranges."""
        if self.kind is not Source.records:
            return self.files
        return [(piece, side) for file, side in self.files for piece in ranges(file)]

    def _share(self, part: int, parts: int) -> list[tuple[File, bool | None]]:
        """The pieces of a part: about as many bytes each, and all parts in turn have all records in their order."""
        if parts == 1:
            return self.files
        found, before = [], 0
        for piece, side in self._pieces():
            if before * parts // max(self.num_bytes, 1) == part:
                found.append((piece, side))
            before += piece.size
        return found

    def records(self, bad: Take | None = None, part: int = 0, parts: int = 1) -> Iterator[Record]:
        """Every record of a part. What cannot be used goes to `bad`, and reading goes on.

        Raises ConfigError for a file that cannot be reached; without `bad` for the first such record, too.
        """
        return usable(self._records(self._share(part, parts)), bad)

    def _records(self, files: list[tuple[File, bool | None]]) -> Iterator[Record | Bad]:
        config = self.config
        if self.kind is Source.digits:
            yield from _digits(config)
        if self.kind is Source.audio_folder:
            yield from _sounds(files, self._transcripts(files), config)
            return
        for file, side in files:
            name, folder = file.name, _folder(file)
            if self.kind is Source.image_folder:
                fields = {config.image_key: file, config.label_key: PurePosixPath(file.url).parent.name}
                yield Record(name, fields, name, folder, side)
            elif self.kind is Source.idx:
                yield from _idx(file, config, side)
            else:
                for row in read_rows(file):
                    good = not isinstance(row, Bad)
                    yield Record(f"{name}:{row.number}", row.fields, row.place, folder, side) if good else row

    def _transcripts(self, files: list[tuple[File, bool | None]]) -> list[File]:
        """The texts in the folders of these files."""
        folders = {_folder(file) for file, _ in files}
        return [file for file, _ in self.files if ending(file.url).endswith(".txt") and _folder(file) in folders]


def _folder(file: File) -> str:
    return file.url.rpartition("/")[0].removeprefix("file://") or "/"


def _check_depth(path: str, found: list[File]) -> None:
    """Raises ConfigError where images do not lie in one folder a class: what the classes are would be a guess."""
    depths = {file.name.count("/"): file.name for file in found}
    if deep := [name for depth, name in depths.items() if depth > 1]:
        raise ConfigError(
            f"data.paths: {deep[0]!r} lies more than one folder below {path!r}, and a class is one folder: give the "
            f"folder that holds the classes, or list the images with data=records"
        )
    if len(depths) > 1:
        raise ConfigError(
            f"data.paths: {depths[0]!r} lies in {path!r} beside the folders of classes: move it into one of them"
        )


def _is_test(file: File) -> bool:
    """Whether a file is of MNIST's own test set."""
    return ending(file.url).startswith("t10k")


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
    labels_at = place.replace(_IMAGES, _LABELS).replace(_IMAGES.upper(), _LABELS.upper())
    images, labels = read_idx(place), read_idx(labels_at)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        shapes = " and ".join(" x ".join(map(str, one.shape)) for one in (images, labels))
        raise ConfigError(f"data: {file.url} and its file of labels are {shapes}: they must be images and their labels")
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        fields = {config.image_key: image[..., None], config.label_key: str(label)}
        yield Record(f"{file.name}:{number}", fields, f"{file.url} image {number}", "", side)


def _sounds(files: list[tuple[File, bool | None]], texts: list[File], config: DataConfig) -> Iterator[Record | Bad]:
    """Each sound with what is said in it: NAME.txt beside it, or a line of its folder's *.trans.txt."""
    said: dict[str, str] = {}
    for file in texts:
        name, text = ending(file.url), decoded(read_bytes(file.url))
        if isinstance(text, Bad):
            yield text._replace(place=file.url)
        elif name.endswith(_TABLE):
            rows = (line.partition(" ") for line in text.split("\n") if line.strip())
            said |= {f"{file.url.rpartition('/')[0]}/{one}": words.strip() for one, _, words in rows}
        else:
            said[file.url.rpartition(".")[0]] = text.strip()
    for file, side in files:
        if ending(file.url).endswith(".txt"):
            continue
        text = said.get(file.url.rpartition(".")[0])
        if text is None:
            reason = f"has no transcript: neither a .txt of its name nor a line of a *{_TABLE} stands by it"
            yield Bad(file.url, reason, "")
        else:
            yield Record(file.name, {config.audio_key: file, config.target_key: text}, file.url, _folder(file), side)
