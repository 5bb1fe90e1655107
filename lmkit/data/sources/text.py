"""Where text comes from: documents with stable names, readable as often as needed."""

import copy
import hashlib
import itertools
import json
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from lmkit.config.base import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.data.sources.documents import Document, Keys, Reader, read_text_file, read_tree_file
from lmkit.data.sources.files import File, ending
from lmkit.data.sources.formats import JSON, LINES, TABLES, Bad, usable, with_packed
from lmkit.data.sources.hf import hf_files, read_hf
from lmkit.data.sources.listing import ANY, matching
from lmkit.data.sources.roots import is_local
from lmkit.data.sources.warc import WARC_SUFFIXES, read_warc
from lmkit.files import write_json

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
TEXT_SUFFIXES = (*with_packed(".txt", ".text", ".md", ".py", *LINES), ".parquet")
_ASKED = {Source.text_files: with_packed(*JSON, *TABLES)}  # a folder has such files that are no documents
RANGE_BYTES, MOST_RANGES = 1 << 28, 32  # each range counts the lines before its own, so they must not be many
_READERS: dict[Source, Reader] = {Source.tree: read_tree_file, Source.warc: read_warc, Source.hf: read_hf}
_SUFFIXES = {Source.tree: ANY, Source.warc: WARC_SUFFIXES}


class TextSource:
    """A list of files that yields documents in a fixed order."""

    def __init__(
        self, files: list[File], text_key: str, holdout_every: int, fold: int = 0, id_key: str = "",
        weight_key: str = "", kind: Source = Source.text_files, max_bad_share: float = 0.0,
        left_out: Counter[str] | None = None,
    ):  # fmt: skip
        self.files, self.text_key, self.holdout_every, self.fold = files, text_key, holdout_every, fold
        self.keys, self.kind, self.max_bad_share = Keys(text_key, id_key, weight_key), kind, max_bad_share
        self.left_out = left_out or Counter()  # files that are there and are not read, by kind

    def save(self, path: Path) -> None:
        """As JSON, for other processes."""
        write_json(path, vars(self) | {"kind": self.kind.name}, indent=None)

    @classmethod
    def load(cls, path: Path) -> "TextSource":
        """What `save` has written."""
        saved = json.loads(path.read_text())
        files = [File(*file) for file in saved["files"]]
        _, id_key, weight_key = saved["keys"]
        return cls(
            files, saved["text_key"], saved["holdout_every"], saved["fold"], id_key, weight_key, Source[saved["kind"]],
            saved["max_bad_share"],
        )  # fmt: skip

    @property
    def num_bytes(self) -> int:
        """Size of the files on disk."""
        return sum(f.size for f in self.files)

    def divided(self, pieces: int) -> "TextSource":
        """The same documents in the same order, local .jsonl files in ranges of lines of at most 1/pieces of it all."""
        shares = ((file, -(-file.size * pieces // max(self.num_bytes, 1))) for file in self.files)
        found = copy.copy(self)
        found.files = [one for file, number in shares for one in ranges(file, number)]
        return found

    def fingerprint(self) -> str:
        """Changes when a file is added, removed or modified, or another field is read; reads no contents."""
        rows = [(f.name, f.size, f.stamp) for f in self.files]
        how = {name: value for name, value in self.keys._asdict().items() if name != "text" and value}
        how |= {"kind": self.kind.name} if self.kind in _READERS else {}
        return hashlib.sha256(json.dumps([rows, self.text_key, *([how] if how else [])]).encode()).hexdigest()

    def documents(self, first: int = 0, step: int = 1, bad: Callable[[Bad], None] | None = None) -> Iterator[Document]:
        """Every document of files[first::step]. Each record that cannot be used goes to `bad`, and reading goes on.

        Raises ConfigError for a file that cannot be reached; without `bad` for the first such record, too.
        """
        read = _READERS.get(self.kind, read_text_file)
        for file in self.files[first::step]:
            yield from usable(read(file, self.keys), bad)

    def held_out(self, name: str) -> bool:
        """Whether a document is kept for evaluation: a hash of its name, so the same on every machine."""
        return int(hashlib.md5(name.encode()).hexdigest(), 16) % self.holdout_every == self.fold


def build_sources(config: DataConfig) -> dict[str, TextSource]:
    """The parts of the mixture that are text by name, finished stores left out; one called "text" without a mixture.

    Raises ConfigError where a path matches nothing or a part holds no bytes.
    """
    parts = config.sources("text")
    if not any(part.weight for part in parts.values()):
        raise ConfigError("data.mixture: every weight is 0; give one part a positive weight")
    built = {}
    for name, part in parts.items():
        kind, paths = part.source, part.paths
        if kind is Source.store:
            if len(paths) != 1:
                raise ConfigError(f"data: the store {name!r} has {len(paths)} paths; give one, its folder or URL")
            continue
        left_out: Counter[str] = Counter()
        files = _files(kind, name, paths, config, left_out)
        source = TextSource(
            files, config.text_key, config.holdout_every, config.fold, config.id_key, config.weight_key, kind,
            config.max_bad_share, left_out,
        )  # fmt: skip
        if not source.num_bytes:
            raise ConfigError(f"data: {_where(paths)} holds no text: {len(files)} files, 0 bytes; check data.paths")
        built[name] = source
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


def _files(kind: Source, part: str, paths: list[str], config: DataConfig, left_out: Counter[str]) -> list[File]:
    """The files of a part of the mixture, in order; what is not read is counted."""
    if kind is Source.python_stdlib:
        return _stdlib_files()
    if not paths:
        raise ConfigError(f"data: no paths for {part!r}: set data.paths=[FILE, FOLDER or GLOB, ...]")
    if kind is Source.hf:
        return hf_files(paths, config.split)
    suffixes, asked = _SUFFIXES.get(kind, TEXT_SUFFIXES), _ASKED.get(kind, ())
    files: dict[str, File] = {}
    for path in paths:
        found = matching(path, suffixes, left_out, asked=asked, allow_roots=config.allow_roots)
        files |= {f.url: f for f in found}
    whole = [files[url] for url in sorted(files)]
    return [one for file in whole for one in ranges(file)] if kind is Source.text_files else whole


def ranges(file: File, number: int | None = None) -> list[File]:
    """A local .jsonl as ranges of its lines, as if they were files, so that several workers can read it.

    Args:
        number: of ranges; as many as its size asks for.
    """
    number = min(file.size // RANGE_BYTES, MOST_RANGES) if number is None else number
    if number < 2 or not is_local(file.url) or not ending(file.url).endswith(LINES):
        return [file]
    begin = file.span[0] if file.span else 0
    edges = itertools.pairwise(begin + file.size * n // number for n in range(number + 1))
    return [file._replace(size=end - start, span=(start, end)) for start, end in edges]
