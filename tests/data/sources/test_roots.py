"""What a record may name: files of its own folder, and what data.allow_roots adds; nothing else is opened."""

import io
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.data.sources import records as sources
from lmkit.data.sources.records import Record, RecordSource
from lmkit.data.sources.roots import resolve
from lmkit.data.sources.text import build_sources

OUTSIDE = [
    "/etc/hostname", "../secret.png", "a/../../secret.png", "file:///etc/hostname", "FILE:///etc/hostname",
    "local:///etc/hostname", "http://127.0.0.1:1/latest/meta-data", "https://h/x.png", "memory://secret/x.png",
    "s3://bucket/x.png", "zip://x::file:///etc/a.zip", "link.png", "linked/secret.png", "a\0b", "simplecache::http://h/x",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of records beside a secret, with links to it."""
    folder = tmp_path / "records"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "a" / "1.png").write_bytes(b"one")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "within.png").symlink_to(folder / "a" / "1.png")
    return folder


def media(value: object, folder: Path | str, *roots: str) -> bytes:
    return Record("x:1", {"image": value}, "x line 1", str(folder), None).media("image", "image_key", roots)[1]


@pytest.mark.parametrize("value", OUTSIDE)
def test_nothing_outside_of_the_folder_is_opened(value: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(sources, "read_bytes", lambda path: opened.append(path) or b"")
    with pytest.raises(ConfigError, match=r"^data: x line 1: 'image': .*(data\.allow_roots=\[|is no path|is a chain)"):
        media(value, folder)
    with pytest.raises(ConfigError):
        media({"bytes": None, "path": value}, folder)
    assert opened == []


def test_what_lies_in_the_folder_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (
        "a/1.png",
        "./a/1.png",
        "a/../a/1.png",
        "within.png",
        f"{folder}/a/1.png",
        f"file://{folder}/a/1.png",
    ):
        assert media(value, folder) == b"one"
    monkeypatch.chdir(folder)
    assert media("a/1.png", ".") == b"one"
    with pytest.raises(ConfigError, match=r"has a int under 'image', not a path"):
        media(7, folder)


def test_other_roots_by_a_key_alone(folder: Path, tmp_path: Path) -> None:
    assert media("../secret.png", folder, str(tmp_path)) == b"secret"
    assert media("link.png", folder, str(tmp_path)) == b"secret"
    fsspec.filesystem("memory").pipe({"/open/a/1.png": b"far", "/secret/x.png": b"secret"})
    assert media("memory://open/a/1.png", folder, "memory://open") == b"far"
    assert media("a/1.png", "memory://open") == b"far"
    assert media("memory://open/a/1.png", "memory://open") == b"far"
    root = "https://good.example/data"
    for value in ("memory://openX/1", "memory://open/../secret/x.png", "memory://open/%2e%2e/secret/x.png"):
        with pytest.raises(ConfigError, match="data.allow_roots="):
            media(value, folder, "memory://open")
    assert resolve(f"{root}/x.png?size=..", str(folder), [root]) == f"{root}/x.png?size=.."
    for value in (
        "https://good.example@evil/data/x",
        "https://good.example/data@evil",
        "https://good.example/database/x",
    ):
        with pytest.raises(ConfigError, match="lies outside"):
            resolve(value, str(folder), [root])
    for value in ("../secret/x.png", "/etc/hostname", "a/../../secret/x.png"):
        with pytest.raises(ConfigError, match="lies outside"):
            media(value, "memory://open")


def test_the_key_reaches_the_records(folder: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600, np.float32), 16_000, format="wav")
    (tmp_path / "a.wav").write_bytes(file.getvalue())
    (folder / "a.wav").symlink_to(tmp_path / "a.wav")
    (folder / "a.txt").write_text("\ufeffwords\n")
    for kind, changes in ((Source.audio_folder, {}), (Source.text_files, {})):
        (folder / "b.txt").unlink(missing_ok=True)
        if kind is Source.text_files:
            (folder / "b.txt").symlink_to(tmp_path / "secret.png")
        config = DataConfig(source=kind, paths=[str(folder)], **changes)
        allowed = DataConfig(source=kind, paths=[str(folder)], allow_roots=[str(tmp_path)])
        build = (
            (lambda c: RecordSource(c.source, c.paths, [], c)) if kind is Source.audio_folder else build_sources
        )  # fmt: skip
        with pytest.raises(ConfigError, match=r"the link .*/(a\.wav|b\.txt) leads to .*set data.allow_roots="):
            build(config)
        assert build(allowed)
