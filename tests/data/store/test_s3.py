"""Sources on a server that speaks S3, on loopback, with outages."""

import gzip
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

moto = pytest.importorskip("moto.server", reason="LOUD: moto is not installed, s3:// is not tested")
s3fs = pytest.importorskip("s3fs", reason="LOUD: s3fs is not installed, s3:// is not tested")

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.prepare import prepare
from lmkit.data.sources import files
from lmkit.data.sources.text import Bad, build_sources
from lmkit.data.store.check import check_store
from lmkit.data.store.frame import CorruptError
from lmkit.data.store.tokens import TRAIN, TokenStore

TEXTS = [f"text number {n} " + "x" * (n % 50) for n in range(60_000)]


@pytest.fixture
def server(monkeypatch):
    """A running server with a bucket: what starts it at the same port again, too."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    running = [moto.ThreadedMotoServer(port=0, verbose=False)]
    running[0].start()
    host, port = running[0].get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # its own tries, so that ours are seen
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.makedirs("bucket", exist_ok=True)  # moto keeps it between servers
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    system.pipe("bucket/corpus/a.jsonl", lines.encode())
    system.pipe("bucket/corpus/b.jsonl.gz", gzip.compress(b'{"text": "packed"}\n{"broken\n'))
    system.pipe("bucket/corpus/c.png", b"\x89")

    def restart() -> None:
        running.append(moto.ThreadedMotoServer(port=port, verbose=False))
        running[-1].start()

    yield running, restart
    running[-1].stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_in_a_bucket(server, corpus: Path, tmp_path: Path) -> None:
    config = DataConfig(paths=[str(corpus)], holdout_every=5, cache_dir=str(tmp_path))
    here = prepare(config, TokenizerConfig(kind=TokenizerKind.bytes)).stores["text"]
    system = s3fs.S3FileSystem()
    system.put(here.place, "bucket/store", recursive=True)
    config = DataConfig(source=Source.store, paths=["s3://bucket/store"], cache_dir=str(tmp_path), memory_mb=1)
    far = prepare(config, TokenizerConfig()).stores["text"]
    starts = np.random.default_rng(0).integers(0, here.num_tokens(TRAIN) - 500, 40)
    np.testing.assert_array_equal(far.windows(TRAIN, starts, 500), here.windows(TRAIN, starts, 500))
    assert far.document_name(TRAIN, 3) == here.document_name(TRAIN, 3)
    assert check_store("s3://bucket/store")[1] == []
    shard = "bucket/store/parts/00000/train/tokens/c/0"
    raw = bytearray(system.cat(shard))
    raw[100] ^= 1
    system.pipe(shard, bytes(raw))
    with pytest.raises(CorruptError, match="s3://bucket/store/parts/00000/train/tokens/c/0 is damaged"):
        TokenStore("s3://bucket/store").windows(TRAIN, [0], 10)
    assert check_store("s3://bucket/store")[1] == [f"{shard[13:]} has changed since it was written (CRC-32)"]
    system.rm(shard)
    with pytest.raises(CorruptError, match=r"train/tokens/c/0 is missing"):
        TokenStore("s3://bucket/store")


def test_a_corpus_in_a_bucket(server) -> None:
    source = build_sources(DataConfig(paths=["s3://bucket/corpus"]))["text"]
    bad: list[Bad] = []
    documents = list(source.documents(bad=bad.append))
    assert [one.text for one in documents] == [*TEXTS, "packed"]
    assert documents[0].name == "a.jsonl:1"
    assert [one.place for one in bad] == ["s3://bucket/corpus/b.jsonl.gz line 2"]
    assert source.fingerprint() == build_sources(DataConfig(paths=["s3://bucket/corpus"]))["text"].fingerprint()


def test_an_outage_is_waited_for_and_a_long_one_named(server, monkeypatch) -> None:
    monkeypatch.setattr(files, "_BLOCK", 1 << 16)
    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 1 << 16)
    running, restart = server
    source = build_sources(DataConfig(paths=["s3://bucket/corpus/a.jsonl"]))["text"]
    documents = source.documents()
    first = [next(documents).text]
    running[-1].stop()
    back = threading.Timer(2.0, restart)
    back.start()
    started = time.monotonic()
    assert first + [one.text for one in documents] == TEXTS
    assert time.monotonic() - started > 1.5
    back.join()
    monkeypatch.setattr(files, "PAUSE_SEC", 0.01)
    documents = source.documents()
    next(documents)
    running[-1].stop()
    with pytest.raises(ConfigError, match=r"cannot read s3://bucket/corpus/a\.jsonl: .*6 tries"):
        list(documents)
    restart()


def test_a_bucket_that_is_not_there(server) -> None:
    with pytest.raises(ConfigError, match="'s3://none/x' matches no file"):
        build_sources(DataConfig(paths=["s3://none/x"]))
