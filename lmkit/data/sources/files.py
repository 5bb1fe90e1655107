"""Files wherever fsspec reaches: found, opened, decompressed; a store that fails is asked again, then named."""

import gzip
import io
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import fsspec

from lmkit.config.base import ConfigError, UserError
from lmkit.redact import HIDDEN, redact_text

PACKED = (".gz", ".zst")
TRIES, PAUSE_SEC = 6, 0.5  # the pauses double: 15 seconds in all
_FINAL = (  # no use to ask again
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, ValueError,
)  # fmt: skip
_BLOCK = 1 << 20
T = TypeVar("T")

_NEEDS = {
    "hdfs": "hdfs:// needs pyarrow, lmkit[parquet], and Hadoop's libhdfs: set HADOOP_HOME, JAVA_HOME and CLASSPATH",
    "s3": "s3:// needs s3fs: pip install 'lmkit[remote]'",
    "gs": "gs:// needs gcsfs: pip install 'lmkit[remote]'",
}


class File(NamedTuple):
    """A file to read, with what tells that it changed."""

    url: str
    name: str
    size: int
    stamp: str


class DamagedError(Exception):
    """A file whose bytes are not of its format: the message says what is wrong."""


def patiently(what: str, act: Callable[[], T]) -> T:
    """`act()`, tried again with growing pauses where it fails. Raises ConfigError, saying what could not be done."""
    for number in range(TRIES):
        try:
            return act()
        except UserError:
            raise
        except _FINAL as error:
            raise ConfigError(f"data: cannot {what}: {getattr(error, 'strerror', None) or error}") from error
        except Exception as error:  # every store has errors of its own
            if number + 1 == TRIES:
                reason = str(error) or type(error).__name__
                raise ConfigError(
                    f"data: cannot {what}: {reason} ({TRIES} tries in {PAUSE_SEC * (2**number - 1):g} seconds and more)"
                ) from error
            time.sleep(PAUSE_SEC * 2**number)
    raise AssertionError


class _Steady(io.RawIOBase):
    """The bytes of a file, opened anew at its place where reading fails."""

    def __init__(self, url: str):
        self.url, self.place = url, 0
        self.inner: Any = None
        self._patiently(self._open)

    def _patiently(self, act: Callable[[], T]) -> T:
        return patiently(f"read {self.url}", act)

    def _open(self) -> None:
        if self.inner is None:
            system, path = fsspec.core.url_to_fs(self.url)
            self.inner = system.open(path, "rb")
            if self.place:
                self.inner.seek(self.place)

    def _read(self, size: int) -> bytes:
        try:
            self._open()
            return self.inner.read(size)
        except Exception:
            self.inner = None
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._patiently(self._open)
        self.place = self.inner.seek(offset, whence)
        return self.place

    def readinto(self, buffer: Any) -> int:
        data = self._patiently(lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)

    def close(self) -> None:
        if self.inner is not None and not self.closed:
            self.inner.close()
        super().close()


class _Zstd(io.RawIOBase):
    """What a zstd file holds. zstandard's own reader takes a file that is cut short for a whole one."""

    def __init__(self, raw: BinaryIO, url: str):
        try:
            from zstandard import ZstdDecompressor
        except ImportError as error:
            raise ConfigError(f"data: reading {url} needs zstandard: pip install 'lmkit[zstd]'") from error
        self.raw, self.ready, self.unused = raw, memoryview(b""), b""
        self.make = lambda: ZstdDecompressor(max_window_size=1 << 31).decompressobj()  # zstd --long=31
        self.frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            packed = self.unused or self.raw.read(_BLOCK)
            if not packed:
                if self.frame is not None:
                    raise EOFError("the last frame is not complete")
                return 0
            self.frame = self.frame or self.make()
            self.ready = memoryview(self.frame.decompress(packed))
            self.unused = b""
            if self.frame.eof:
                self.unused, self.frame = self.frame.unused_data, None
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size

    def close(self) -> None:
        self.raw.close()
        super().close()


def opened(url: str, packed: bool = True) -> BinaryIO:
    """A file's bytes, of .gz and .zst (unless `packed` is false) what is packed in them.

    Raises ConfigError, also later while it is read, where the file cannot be reached. What else it raises while it is
    read says that it is damaged: see `damage`.
    """
    raw = cast(BinaryIO, io.BufferedReader(_Steady(url), _BLOCK))
    if packed and url.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))  # a buffer around it would lose what comes before a damage
    if packed and url.endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(_Zstd(raw, url), _BLOCK))
    return raw


def damage(error: Exception) -> str:
    """What is wrong with a file, by what was raised while it was unpacked. Raises what says something else."""
    if isinstance(error, UserError):
        raise error
    known = isinstance(error, EOFError | OSError | zlib.error | DamagedError)  # a store's OSError is a UserError by now
    if not known and type(error).__module__.partition(".")[0] not in ("zstandard", "pyarrow"):
        raise error
    return f"is damaged or cut short: {error}"


def read_bytes(url: str) -> bytes:
    """All of a file, as it is."""
    with opened(url, packed=False) as file:
        return file.read()


def expand(path: str, suffixes: tuple[str, ...]) -> list[File]:
    """The files of a path, folder or glob; names are relative to the folder or the glob's fixed part.

    A path that names one file may end otherwise; ("",) is every file but links, which would give a text twice. Raises
    ConfigError for what cannot be read.
    """
    if "://" in path and HIDDEN in path:
        raise ConfigError(f"data.paths: {path!r} has lost its credentials, which config.yaml does not keep: write them")
    try:
        system, root = fsspec.core.url_to_fs(str(Path(path).expanduser()) if "://" not in path else path)
    except (ImportError, ValueError, OSError) as error:
        hint = _NEEDS.get(path.partition("://")[0], "the extra lmkit[remote] has gs:// and s3://")
        reason = str(error).partition("\n")[0]  # libhdfs has a line for each place where it looked for Java
        raise ConfigError(f"data.paths: cannot open {path!r}: {reason} ({hint})") from error
    found, base = patiently(f"list data.paths={path!r}", lambda: _found(system, root, path))
    files = []
    for name, info in sorted(found.items()):
        link = info.get("islink") and suffixes != ("",) and Path(name).is_file()
        if (info.get("type") == "file" or link) and (name.endswith(suffixes) or name == root):
            stamp = info.get("mtime") or info.get("ETag") or info.get("etag") or info.get("md5Hash") or ""
            url, shown = system.unstrip_protocol(name), name[len(base) :].lstrip("/")
            if redact_text(url) != url:
                shown = shown.partition("?")[0]  # a name is kept with the text, and a signature is new each time
            files.append(File(url, shown, int(info["size"] or 0), str(stamp)))
    return files


def _found(system: Any, root: str, path: str) -> tuple[dict[str, Any], str]:
    """What is there by name, and what their names are relative to."""
    if system.isdir(root):
        return system.find(root, detail=True), root
    if any(c in path for c in "*?["):
        fixed = root[: min(root.find(c) for c in "*?[" if c in root)]
        return system.glob(root, detail=True), fixed.rpartition("/")[0]
    return ({root: system.info(root)} if system.exists(root) else {}), root.rpartition("/")[0]
