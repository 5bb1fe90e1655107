"""Where text comes from: documents with stable names, readable as often as needed."""

import gzip
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from lmkit.config.base import ConfigError
from lmkit.config.data import DataConfig, Source

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
TEXT_SUFFIXES = (".txt", ".text", ".md", ".py", ".jsonl", ".jsonl.gz", ".parquet")


class Document(NamedTuple):
    """A text and the name it keeps on every machine: the hold-out split hashes it."""

    name: str
    text: str


class File(NamedTuple):
    """A file to read, with what tells that it changed."""

    url: str
    name: str
    size: int
    stamp: str


class TextSource:
    """A list of files that yields documents in a fixed order."""

    def __init__(self, files: list[File], text_key: str, holdout_every: int, fold: int = 0):
        self.files, self.text_key, self.holdout_every, self.fold = files, text_key, holdout_every, fold

    @property
    def num_bytes(self) -> int:
        """Size of the files on disk."""
        return sum(f.size for f in self.files)

    def fingerprint(self) -> str:
        """Changes when a file is added, removed or modified; reads no contents."""
        rows = [(f.name, f.size, f.stamp) for f in self.files]
        return hashlib.sha256(json.dumps([rows, self.text_key]).encode()).hexdigest()

    def documents(self) -> Iterator[Document]:
        """Every document. Raises ConfigError for a file or record that cannot be read."""
        for file in self.files:
            yield from _read(file, self.text_key)

    def held_out(self, name: str) -> bool:
        """Whether a document is kept for evaluation: a hash of its name, so the same on every machine."""
        return int(hashlib.md5(name.encode()).hexdigest(), 16) % self.holdout_every == self.fold


def build_sources(config: DataConfig) -> dict[str, tuple[TextSource, float]]:
    """The parts of the mixture by name, each with its weight; one part called "text" without a mixture.

    Raises ConfigError where a path matches nothing or a part holds no bytes.
    """
    parts = {name: (part.source, part.paths, part.weight) for name, part in config.mixture.items()}
    parts = parts or {"text": (config.source, config.paths, 1.0)}
    if not any(weight for _, _, weight in parts.values()):
        raise ConfigError("data.mixture: every weight is 0; give one part a positive weight")
    built = {}
    for name, (kind, paths, weight) in parts.items():
        files = _stdlib_files() if kind is Source.python_stdlib else _text_files(name, paths)
        source = TextSource(files, config.text_key, config.holdout_every, config.fold)
        if not source.num_bytes:
            raise ConfigError(f"data: {_where(paths)} holds no text: {len(files)} files, 0 bytes; check data.paths")
        built[name] = (source, weight)
    return built


def _where(paths: list[str]) -> str:
    return ", ".join(paths) or "the source"


def _stdlib_files() -> list[File]:
    """The running Python's own library, without its tests and what was installed into it."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not _NOT_LIBRARY & set(relative.parts):
            stat = path.stat()
            files.append(File(str(path), relative.as_posix(), stat.st_size, str(stat.st_mtime_ns)))
    if not files:
        raise ConfigError(f"data=python_stdlib: no .py files under {root}; use data=text_files data.paths=[...]")
    return files


def _text_files(part: str, paths: list[str]) -> list[File]:
    if not paths:
        raise ConfigError(f"data: no paths for {part!r}: set data.paths=[FILE, FOLDER or GLOB, ...]")
    files: dict[str, File] = {}
    for path in paths:
        found = expand(path, TEXT_SUFFIXES)
        if not found:
            raise ConfigError(f"data.paths: {path!r} matches no file with one of {', '.join(TEXT_SUFFIXES)}")
        files |= {f.url: f for f in found}
    return [files[url] for url in sorted(files)]


def expand(path: str, suffixes: tuple[str, ...]) -> list[File]:
    """The files of a path, folder or glob; names are relative to the folder or the glob's fixed part.

    A path that names one file may end otherwise. Raises ConfigError for what cannot be read.
    """
    try:
        system, root = fsspec.core.url_to_fs(str(Path(path).expanduser()) if "://" not in path else path)
        if system.isdir(root):
            found, base = system.find(root, detail=True), root
        elif any(c in path for c in "*?["):
            fixed = root[: min(root.find(c) for c in "*?[" if c in root)]
            found, base = system.glob(root, detail=True), fixed.rpartition("/")[0]
        else:
            found, base = ({root: system.info(root)} if system.exists(root) else {}), root.rpartition("/")[0]
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"data.paths: cannot open {path!r}: {error} (the extra lmkit[remote] has gs:// and s3://)"
        ) from error
    except OSError as error:
        raise ConfigError(f"data.paths: cannot read {path!r}: {error.strerror or error}") from error
    files = []
    for name, info in sorted(found.items()):
        if info.get("type") == "file" and (name.endswith(suffixes) or name == root):
            stamp = info.get("mtime") or info.get("ETag") or info.get("etag") or info.get("md5Hash") or ""
            files.append(
                File(system.unstrip_protocol(name), name[len(base) :].lstrip("/"), int(info["size"] or 0), str(stamp))
            )
    return files


def _read(file: File, text_key: str) -> Iterator[Document]:
    try:
        if file.url.endswith(".parquet"):
            yield from _read_parquet(file, text_key)
        elif file.url.endswith((".jsonl", ".jsonl.gz")):
            yield from _read_jsonl(file, text_key)
        else:
            with fsspec.open(file.url, "rb") as handle:
                yield Document(file.name, handle.read().decode("utf-8", errors="replace"))  # type: ignore[union-attr]
    except OSError as error:
        raise ConfigError(f"data: cannot read {file.url}: {error.strerror or error}") from error


def _text_of(record: Any, text_key: str, place: str) -> str:
    text = record.get(text_key) if isinstance(record, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise ConfigError(f"data: {place} has no text under {text_key!r}, it has: {keys}; set data.text_key=")
    return text


def _read_jsonl(file: File, text_key: str) -> Iterator[Document]:
    with fsspec.open(file.url, "rb") as raw:
        lines = gzip.GzipFile(fileobj=raw) if file.url.endswith(".gz") else raw  # type: ignore[arg-type]
        for number, line in enumerate(lines, 1):  # type: ignore[arg-type]
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"data: {file.url} line {number} is not JSON: {error}") from error
            yield Document(f"{file.name}:{number}", _text_of(record, text_key, f"{file.url} line {number}"))


def _read_parquet(file: File, text_key: str) -> Iterator[Document]:
    table = open_parquet(file)
    if text_key not in table.schema_arrow.names:
        raise ConfigError(f"data: {file.url} has no column {text_key!r}, it has: {', '.join(table.schema_arrow.names)}")
    number = 0
    for batch in table.iter_batches(columns=[text_key], batch_size=1024):
        for text in batch.column(0).to_pylist():
            number += 1
            yield Document(f"{file.name}:{number}", text or "")


def open_parquet(file: File) -> Any:
    """A pyarrow ParquetFile. Raises ConfigError where it is none, or pyarrow is missing."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ConfigError(f"data: reading {file.url} needs pyarrow: pip install 'lmkit[parquet]'") from error
    try:
        system, path = fsspec.core.url_to_fs(file.url)
        return parquet.ParquetFile(system.open(path, "rb"))
    except ArrowInvalid as error:
        raise ConfigError(f"data: {file.url} is not a parquet file: {error}") from error
