"""Files wherever fsspec reaches: what is found, unpacked, tried again and named."""

import gzip
import io
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lmkit.config import ConfigError
from lmkit.config.sections.data import Source
from lmkit.data.sources import files
from lmkit.data.sources.files import File, damage, opened, patiently, read_bytes
from lmkit.data.sources.listing import expand
from lmkit.data.sources.text import TextSource

CONTENT = b"".join(b"line %d\n" % n for n in range(300_000))  # several blocks


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that were made, none of them waited for."""
    made: list[float] = []
    monkeypatch.setattr(files.time, "sleep", made.append)
    return made


class FlakyFile(io.BytesIO):
    """Fails at every other read."""

    reads = 0

    def read(self, *size):
        FlakyFile.reads += 1
        if FlakyFile.reads % 2:
            raise ConnectionError("the line is down")
        return super().read(*size)


def test_a_flaky_store_is_read_to_the_end(pauses, monkeypatch) -> None:
    MemoryFileSystem().pipe("/flaky/a.txt", CONTENT)
    monkeypatch.setattr(MemoryFileSystem, "open", lambda self, path, mode: FlakyFile(self.cat(path)))
    assert read_bytes("memory://flaky/a.txt") == CONTENT
    assert len(pauses) >= 3
    assert set(pauses) == {0.5}, "a success starts the count anew"


def test_a_dead_store_is_named(pauses) -> None:
    def fail():
        raise TimeoutError

    with pytest.raises(ConfigError, match=r"data: cannot read s3://x: TimeoutError \(6 tries in 15\.5 seconds"):
        patiently("read s3://x", fail)
    assert pauses == [0.5, 1, 2, 4, 8]
    with pytest.raises(ConfigError, match=r"cannot read memory://none: memory://none|cannot read memory://none"):
        read_bytes("memory://none")
    assert len(pauses) == 5, "what is not there is not asked for again"


def test_parts_of_a_file_are_read_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with opened(str(tmp_path / "a.bin")) as file:
        file.seek(-8, io.SEEK_END)
        assert file.read() == CONTENT[-8:]
        file.seek(1_500_000)
        assert file.read(10) == CONTENT[1_500_000:1_500_010]


def packed(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    zstandard = pytest.importorskip("zstandard", reason="LOUD: zstandard is not installed, .zst is not tested")
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_unpacked(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    whole = packed(name, CONTENT[:1_000_000]) + packed(name, CONTENT[1_000_000:])  # two members in one file
    path.write_bytes(whole)
    with opened(str(path)) as file:
        assert file.read() == CONTENT
    with opened(str(path), packed=False) as file:
        assert file.read() == whole
    path.write_bytes(whole[:-20])
    with opened(str(path)) as file, pytest.raises(Exception) as caught:  # noqa: PT011
        file.read()
    assert "is damaged or cut short" in damage(caught.value)
    path.write_bytes(whole[:100] + b"\0\xff" * 40 + whole[180:])
    with opened(str(path)) as file, pytest.raises(Exception) as caught:  # noqa: PT011
        file.read()
    assert "is damaged or cut short" in damage(caught.value)


def test_other_errors_are_not_damage() -> None:
    for error in (KeyError("x"), ConfigError("x"), MemoryError()):
        with pytest.raises(type(error)):
            damage(error)


def test_links_to_files_count_where_an_ending_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "missing")
    assert [file.name for file in expand(str(tmp_path), (".txt",))] == ["a.txt", "b.txt"]
    assert [file.name for file in expand(str(tmp_path), ("",))] == ["a.txt"]


def test_a_store_whose_library_is_missing_is_named(monkeypatch) -> None:
    def missing(*_, **__):
        raise OSError("Unable to load libhdfs\nand forty more lines")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"cannot open 'hdfs://n/x': Unable to load libhdfs \(hdfs:// needs pyarrow"):
        expand("hdfs://n/x", (".txt",))


def test_a_url_without_its_credentials_says_so() -> None:
    with pytest.raises(ConfigError, match=r"data.paths: .* has lost its credentials, which config.yaml"):
        expand("https://***@host/a.txt", (".txt",))


def test_the_name_of_a_document_has_no_signature() -> None:
    """Names are kept in stores, and a new signature must not make a new store."""
    MemoryFileSystem().pipe("/signed/a.txt?sig=hunter2", b"text")
    (file,) = expand("memory://signed/a.txt?sig=hunter2", ("hunter2",))
    assert (file.name, file.size) == ("a.txt", 4)


def test_a_source_goes_to_other_processes_as_json(tmp_path: Path) -> None:
    """Before, as a pickle in a folder that others can write."""
    source = TextSource([File("a", "b", 1, "c")], "text", 5, 1, "id", "weight", Source.warc, 0.5)
    source.save(tmp_path / "source.json")
    loaded = TextSource.load(tmp_path / "source.json")
    assert vars(loaded) == vars(source)
    assert loaded.fingerprint() == source.fingerprint()
