"""Files wherever fsspec reaches: found, opened, decompressed; a store that fails is asked again, then named."""

import gzip
import io
import re
import time
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import fsspec

from lmkit.config.base import ConfigError, UserError
from lmkit.data.sources.roots import is_local, local_path

PACKED = (".gz", ".zst")
TRIES, PAUSE_SEC = 6, 0.5  # the pauses double: 15 seconds in all
_FINAL = (  # no use to ask again
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, ValueError,
)  # fmt: skip
_BLOCK = 1 << 20
T = TypeVar("T")


class File(NamedTuple):
    """A file to read, with what tells that it changed; with `span` the lines of it that begin between two bytes."""

    url: str
    name: str
    size: int
    stamp: str
    span: tuple[int, int] | None = None


class DamagedError(Exception):
    """A file whose bytes are not of its format: the message says what is wrong."""


class UnreachableError(ConfigError):
    """A store that does not answer. It says nothing about the files in it."""


def located(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path in it. A local path stands as it is, whatever its name holds."""
    return (fsspec.filesystem("file"), local_path(url)) if is_local(url) else fsspec.core.url_to_fs(url)


def ending(url: str) -> str:
    """The name of a file in lower case, by whose end its format is told; without the query of a web address."""
    if url.startswith(("http://", "https://")):
        url = re.split("[?#]", url, maxsplit=1)[0]
    return url.rpartition("/")[2].lower()


def unpacked_ending(url: str) -> str:
    """The same without .gz or .zst."""
    return ending(url).removesuffix(".gz").removesuffix(".zst")


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
                raise UnreachableError(
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
            system, path = located(self.url)
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
    if packed and ending(url).endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))  # a buffer around it would lose what comes before a damage
    if packed and ending(url).endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(_Zstd(raw, url), _BLOCK))
    return raw


def damage(error: Exception) -> str:
    """What is wrong with a file, by what was raised while it was unpacked. Raises what says something else."""
    if isinstance(error, UserError):
        raise error
    # a store's OSError is a UserError by now; pyarrow decodes a table's texts late
    known = isinstance(error, EOFError | OSError | zlib.error | DamagedError | UnicodeDecodeError)
    if not known and type(error).__module__.partition(".")[0] not in ("zstandard", "pyarrow"):
        raise error
    return f"is damaged or cut short: {error}"


def read_bytes(url: str) -> bytes:
    """All of a file, as it is."""
    with opened(url, packed=False) as file:
        return file.read()
