"""Stores in parts: what readers see, what is missing, what is resumed."""

import errno
import fcntl
import http.server
import os
import pickle
import socket
import stat
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.cache import make_once
from lmkit.data.prepare import prepare
from lmkit.data.sources.text import build_sources
from lmkit.data.store import places, token_parts
from lmkit.data.store.build import build_frame, one_by_one, unfinished
from lmkit.data.store.frame import CorruptError, Frame
from lmkit.data.store.part_writer import Array, PartWriter
from lmkit.data.store.places import hear_missing, kvstore_of, tell_missing
from lmkit.data.store.token_parts import build_store
from lmkit.data.store.tokens import HELDOUT, TRAIN, TokenStore
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.files import write_text


def store_in_parts(corpus: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, parts: int) -> TokenStore:
    (source,) = build_sources(DataConfig(paths=[str(corpus)], holdout_every=5)).values()
    with monkeypatch.context() as patch:
        patch.setattr(token_parts, "PART_BYTES", source.num_bytes // parts)
        assert token_parts.num_parts(source) == parts
        build_store(folder, source, ByteTokenizer(), lambda *_: None)
    return TokenStore(folder)


def documents(store: TokenStore, split: str) -> dict[str, str]:
    """Each document by its name, by way of ends and names alone."""
    tokens = store.windows(split, [0], store.num_tokens(split))[0]
    ends, found = store.document_ends(split), {}
    assert tokens[0] == 256
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        assert tokens[start] == tokens[end] == 256
        found[store.document_name(split, number)] = bytes(tokens[start + 1 : end].astype(np.uint8)).decode()
    assert len(tokens) == ends[-1] + 1
    return found


def test_parts_change_nothing_but_the_order(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [store_in_parts(corpus, tmp_path / str(n), monkeypatch, n) for n in (1, 7)]
    originals = {path.name: path.read_text() for path in corpus.iterdir()}
    for split in (TRAIN, HELDOUT):
        one, many = (documents(store, split) for store in stores)
        assert one == many
        assert one.items() <= originals.items()
    assert stores[0].meta["splits"] == stores[1].meta["splits"]
    assert len(documents(stores[1], TRAIN)) + len(documents(stores[1], HELDOUT)) == len(originals)


def test_ends_are_read_by_slices(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven parts: positions in the whole, whatever slice asks for them."""
    store = store_in_parts(corpus, tmp_path / "store", monkeypatch, 7)
    whole, ends = store.document_ends(TRAIN), store.frame.ends(f"{TRAIN}/ends", of=f"{TRAIN}/tokens")
    assert len(ends) == len(whole) == store.meta["splits"][TRAIN]["documents"]
    assert (np.diff(whole) > 0).all()
    assert whole[-1] == ends[-1] == store.num_tokens(TRAIN) - 1
    for first in range(-3, len(whole) + 2):
        for last in range(first, len(whole) + 3, 5):
            np.testing.assert_array_equal(ends[first:last], whole[first:last])
    assert [int(ends[n]) for n in range(len(whole))] == whole.tolist()


def test_one_process_lists_a_store_and_tells_the_others(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in_parts(corpus, tmp_path / "store", monkeypatch, 3)
    (tmp_path / "store" / "parts" / "00001" / "train" / "tokens" / "c" / "0").unlink()
    with pytest.raises(CorruptError, match="parts/00001/train/tokens/c/0 is missing"):
        TokenStore(store.place)
    told, listed = tell_missing(), []
    hear_missing(told)
    files = Frame.files
    monkeypatch.setattr(Frame, "files", lambda self: listed.append(self.place) or files(self))
    with pytest.raises(CorruptError, match="parts/00001/train/tokens/c/0 is missing"):
        TokenStore(store.place)
    assert not listed, "told, not listed"
    with pytest.raises(CorruptError):
        TokenStore(store.place)
    assert listed, "what was told counts once"


def test_parts_and_files_grow_with_the_corpus(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus 2.5 times as large as the most parts take has no more parts, and larger files."""
    (source,) = build_sources(DataConfig(paths=[str(corpus)], holdout_every=5)).values()
    monkeypatch.setattr(token_parts, "MOST_PARTS", 4)
    monkeypatch.setattr(token_parts, "PART_BYTES", source.num_bytes // 10)
    assert token_parts.num_parts(source) == 4
    build_store(tmp_path / "store", source, ByteTokenizer(), lambda *_: None)
    store = TokenStore(tmp_path / "store")
    assert len(store.meta["parts"]) == 4
    assert {part["shards"]["train/tokens"] for part in store.meta["parts"]} == {2 << 24}
    originals = {path.name: path.read_text() for path in corpus.iterdir()}
    assert documents(store, TRAIN) | documents(store, HELDOUT) == originals


def test_windows_across_parts(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in_parts(corpus, tmp_path / "s", monkeypatch, 7)
    whole = store.windows(TRAIN, [0], store.num_tokens(TRAIN))[0]
    starts = np.random.default_rng(0).integers(0, len(whole) - 50_000, 50)
    for length in (1, 300, 50_000):
        wanted = np.stack([whole[start : start + length] for start in starts])
        np.testing.assert_array_equal(store.windows(TRAIN, starts, length), wanted)
    sent = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(sent.windows(TRAIN, starts, 300), store.windows(TRAIN, starts, 300))


def test_a_missing_file_is_named_when_opened_and_when_read(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in_parts(corpus, tmp_path / "s", monkeypatch, 3)
    (tmp_path / "s" / "parts" / "00001" / TRAIN / "tokens" / "c" / "0").unlink()
    start = store.frame.pieces(f"{TRAIN}/tokens")[1].first
    with pytest.raises(CorruptError, match="missing"):
        store.windows(TRAIN, [0, start + 5], 10)  # opened before: the fill is no token
    with pytest.raises(CorruptError, match=r"parts/00001/train/tokens/c/0 is missing \(1 files are\)"):
        TokenStore(tmp_path / "s")


def test_what_is_lost_is_left_out_and_counted(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in_parts(corpus, tmp_path / "s", monkeypatch, 3)
    file = tmp_path / "s" / "parts" / "00001" / TRAIN / "tokens" / "c" / "0"
    damaged = bytearray(file.read_bytes())
    damaged[10] ^= 4
    file.write_bytes(damaged)
    lenient = TokenStore(tmp_path / "s", skip_corrupt=True)
    first = store.frame.pieces(f"{TRAIN}/tokens")[1].first
    tokens, good = lenient.try_windows(TRAIN, [0, first + 5, 20], 10)
    assert good.tolist() == [True, False, True]
    assert (tokens[1] == 256).all()
    assert sum(lenient.lost.values()) == 1
    assert "parts/00001/train/tokens/c/0 is damaged" in next(iter(lenient.lost))


def refuse(*_) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


def killed(_: Path, parts: list[int], make: Callable[[int], None]) -> None:
    make(parts[0])
    raise KeyboardInterrupt


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path) -> None:
    made, unfinished = [], tmp_path / f".s-unfinished-{socket.gethostname()}"

    def make(number: int, folder: Path) -> None:
        writer = PartWriter(folder, {"a": Array("int32"), "none": Array("int32")})
        writer.append("a", np.arange(number * 10, number * 10 + 10))
        if number == 3 and len(made) < 4:
            made.append(-1)
            raise KeyboardInterrupt
        writer.close({"first": number * 10})
        made.append(number)

    with pytest.raises(KeyboardInterrupt):
        build_frame(tmp_path / "s", 5, make, lambda *_: {}, one_by_one)
    assert not (tmp_path / "s").exists()
    (unfinished / "parts" / ".00003-killed").mkdir()  # as SIGKILL leaves it
    build_frame(tmp_path / "s", 5, make, lambda _, facts: {"firsts": [one["first"] for one in facts]}, one_by_one)
    assert made == [0, 1, 2, -1, 3, 4]
    frame = Frame(tmp_path / "s", 0)
    np.testing.assert_array_equal(frame.whole("a"), np.arange(50))
    assert frame.meta["firsts"] == [0, 10, 20, 30, 40]
    assert frame.length("none") == len(frame.whole("none")) == 0
    assert not unfinished.exists()
    assert not frame.missing()


def test_two_that_want_a_store_build_it_once(tmp_path: Path) -> None:
    """Two runs that begin together on an empty cache: before, they wrote into one folder, and one of them broke off."""
    made, together = [], threading.Barrier(2, timeout=30)

    def make(number: int, folder: Path) -> None:
        made.append(number)
        writer = PartWriter(folder, {"a": Array("int32")})
        writer.append("a", np.arange(3))
        threading.Event().wait(0.2)
        writer.close({})

    def build() -> None:
        together.wait()
        build_frame(tmp_path / "s", 2, make, lambda *_: {}, one_by_one)
        found.append(Frame(tmp_path / "s", 0).whole("a").tolist())

    found: list[list[int]] = []
    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [0, 1]
    assert found == [[0, 1, 2, 0, 1, 2]] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_builders_that_see_no_locks_keep_out_of_each_others_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems without locks: each has a folder of its own, the first gives its store to all."""
    monkeypatch.setattr(fcntl, "flock", refuse)
    together, folders, found = threading.Barrier(3, timeout=30), set(), []

    def make(number: int, folder: Path) -> None:
        together.wait()
        folders.add(folder.parents[1])
        writer = PartWriter(folder, {"a": Array("int32")})
        writer.append("a", np.arange(3))
        threading.Event().wait(0.05 * len(folders))
        writer.close({})

    def build() -> None:
        build_frame(tmp_path / "s", 1, make, lambda *_: {}, one_by_one)
        found.append(Frame(tmp_path / "s", 0).whole("a").tolist())

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[0, 1, 2]] * 3
    assert len(folders) == 3
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["s"]


def test_a_part_that_another_machine_has_finished_is_not_made_again(tmp_path: Path) -> None:
    def make(number: int, folder: Path) -> None:
        if number == 1 and not made:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(number)
        PartWriter(folder, {}).close({"n": number})

    made: list = []
    with pytest.raises(KeyboardInterrupt):
        build_frame(tmp_path / "s", 2, lambda n, folder: None if n == 1 else make(n, folder), lambda *_: {}, killed)
    (theirs,) = unfinished(tmp_path / "s")
    theirs.rename(theirs.with_name(".s-unfinished-another-machine"))
    build_frame(tmp_path / "s", 2, make, lambda _, facts: {"n": [one["n"] for one in facts]}, one_by_one)
    assert made == [0, 1]
    assert Frame(tmp_path / "s", 0).meta["n"] == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_cache_has_the_modes_of_its_maker(tmp_path: Path) -> None:
    """So that others may read a cache that is shared: mkdtemp's folders are for their maker alone."""
    before = os.umask(0o027)
    try:
        make_once(tmp_path / "cache" / "a", lambda tmp: write_text(tmp / "file", "text"))
        build_frame(tmp_path / "s", 1, lambda _, tmp: PartWriter(tmp, {}).close({}), lambda *_: {}, one_by_one)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_dir()}
    assert modes == {0o750}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()} == {0o640}


def test_places() -> None:
    assert kvstore_of("/a/b") == {"driver": "file", "path": "/a/b/"}
    assert kvstore_of("file:///a/b/") == {"driver": "file", "path": "/a/b/"}
    assert kvstore_of("a:b/c?d#e") == {"driver": "file", "path": "a:b/c?d#e/"}
    assert kvstore_of("file:///a/b#c") == {"driver": "file", "path": "/a/b#c/"}
    assert kvstore_of("gs://bucket/a/b") == {"driver": "gcs", "bucket": "bucket", "path": "a/b/"}
    assert kvstore_of("s3://bucket/a")["path"] == "a/"
    with pytest.raises(ConfigError, match=r"hdfs://.*s3://, gs://"):
        kvstore_of("hdfs://x/y")


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Answers each question when it is asked for the third time, or never."""

    asked: ClassVar[Counter] = Counter()
    dead = False

    def do_GET(self) -> None:
        question = (self.path, self.headers.get("Range"))
        Flaky.asked[question] += 1
        if Flaky.dead or Flaky.asked[question] % 3:
            return self.send_error(503)
        data = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = (int(first), int(last or len(data) - 1)) if first else (len(data) - int(last), len(data) - 1)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.send_header("Content-Length", str(end + 1 - start))
        self.end_headers()
        self.wfile.write(data[start : end + 1])

    def log_message(self, *_) -> None: ...


def test_an_object_store_that_fails_is_asked_again_and_then_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in_parts(corpus, tmp_path / "s", monkeypatch, 3)
    monkeypatch.setattr(places, "RETRIES", {"max_retries": 4, "initial_delay": "1ms", "max_delay": "4ms"})
    handler = partial(Flaky, directory=str(tmp_path / "s"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        far = TokenStore(place)
        np.testing.assert_array_equal(far.windows(TRAIN, [5], 90_000), store.windows(TRAIN, [5], 90_000))
        np.testing.assert_array_equal(far.document_ends(TRAIN), store.document_ends(TRAIN))
        Flaky.dead = True
        with pytest.raises(ConfigError, match=rf"{place}.*cannot read meta.json.*503"):
            TokenStore(place)
        server.shutdown()


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finished store: it has no meta.json; python -m lmkit.prepare"):
        TokenStore(tmp_path)


def test_a_store_of_another_format_is_refused(corpus: Path, tmp_path: Path) -> None:
    config = DataConfig(paths=[str(corpus)], holdout_every=5, cache_dir=str(tmp_path))
    store = prepare(config, TokenizerConfig(kind=TokenizerKind.bytes)).stores["text"]
    meta = Path(store.place) / "meta.json"
    meta.write_text(meta.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(ConfigError, match="store format 1, this version reads 2"):
        TokenStore(store.place)
