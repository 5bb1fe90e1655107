"""Every file of a store is looked at."""

import http.server
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.prepare import prepare
from lmkit.data.store.check import check_store


@pytest.fixture
def store(corpus: Path, tmp_path: Path) -> Path:
    config = DataConfig(paths=[str(corpus)], holdout_every=5, cache_dir=str(tmp_path / "cache"))
    return Path(prepare(config, TokenizerConfig(kind=TokenizerKind.bytes)).stores["text"].place)


def test_a_good_store(store: Path) -> None:
    told = []
    count, problems = check_store(str(store), lambda *words: told.append(words))
    assert problems == []
    assert count == len([path for path in store.rglob("*") if path.is_file()]) - 2  # meta.json, files.json
    assert told[-1][1] == told[-1][2] > 0


def test_any_changed_byte_of_any_file_is_found(store: Path, tmp_path: Path) -> None:
    files = [path.relative_to(store) for path in store.rglob("*") if path.is_file()]
    for number, name in enumerate(name for name in files if name.name not in ("meta.json", "files.json")):
        copy = tmp_path / str(number)
        shutil.copytree(store, copy)
        damaged = bytearray((copy / name).read_bytes())
        damaged[len(damaged) // 2] ^= 1
        (copy / name).write_bytes(damaged)
        assert check_store(str(copy))[1] == [f"{name} has changed since it was written (CRC-32)"]
        (copy / name).write_bytes(damaged[:-1])
        assert check_store(str(copy))[1] == [f"{name} has {len(damaged) - 1} bytes, {len(damaged)} were written"]
        (copy / name).unlink()
        assert check_store(str(copy))[1] == [f"{name} is missing"]


def test_from_a_server(store: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(store))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/"
        assert check_store(place)[1] == []
        chunk = next((store / "parts").rglob("c/0"))
        chunk.write_bytes(b"x" + chunk.read_bytes()[1:])
        assert len(check_store(place)[1]) == 1
        server.shutdown()


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished store"):
        check_store(str(tmp_path))
