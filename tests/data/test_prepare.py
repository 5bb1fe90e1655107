"""Sources, tokenizers, the store, and what is built from them."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from helpers import tiny_experiment
from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, Source, SourceConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.core.task import prepare_task
from lmkit.data.prepare import prepare
from lmkit.data.sources.text import build_sources
from lmkit.data.store.frame import CorruptError
from lmkit.data.store.part_writer import Array, ArrayWriter, PartWriter
from lmkit.data.store.token_parts import _Text, find_cut, token_weights
from lmkit.data.store.tokens import HELDOUT, TRAIN, TokenStore
from lmkit.data.tokens.tokenizer import ByteTokenizer, load_tokenizer
from lmkit.data.tokens.vocabulary import train_bpe

BYTES = TokenizerConfig(kind=TokenizerKind.bytes)


def text_data(path: Path | str, cache: Path, **changes) -> DataConfig:
    return DataConfig(
        source=Source.text_files, paths=[str(path)], cache_dir=str(cache), **({"holdout_every": 5} | changes)
    )


def texts_of(path: Path | str) -> list[str]:
    (source,) = build_sources(DataConfig(paths=[str(path)])).values()
    return [document.text for document in source.documents()]


def test_formats_and_globs(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="LOUD: pyarrow is not installed, .parquet is not tested")
    from pyarrow import parquet

    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "sub" / "b.jsonl").write_text('{"text": "two"}\n\n{"text": "three", "id": 3}\n')
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write('{"text": "four"}\n')
    parquet.write_table(pyarrow.table({"text": ["five", "six"], "n": [1, 2]}), tmp_path / "d.parquet")
    (tmp_path / "ignored.bin").write_bytes(b"\x00")
    assert sorted(texts_of(tmp_path)) == ["five", "four", "one", "six", "three", "two"]
    assert texts_of(tmp_path / "**" / "*.jsonl") == ["two", "three"]
    assert texts_of(f"file://{tmp_path}/a.txt") == ["one"]


@pytest.mark.parametrize(("files", "path", "words"), [
    ({}, "", ["matches no file"]),
    ({"a.txt": ""}, "", ["holds no text", "0 bytes"]),
    ({"a.jsonl": '{"text": "x"}\n{bad\n'}, "", ["a.jsonl line 2", "not JSON"]),
    ({"a.jsonl": '{"body": "x"}\n'}, "", ["a.jsonl line 1", "'text'", "body", "data.text_key"]),
    ({"a.parquet": "not parquet"}, "", ["a.parquet", "not a parquet file"]),
    ({"a.txt": "x"}, "missing.txt", ["missing.txt", "matches no file"]),
])  # fmt: skip
def test_a_bad_corpus_is_named(tmp_path: Path, files: dict[str, str], path: str, words: list[str]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, text in files.items():
        (corpus / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        prepare(text_data(corpus / path, tmp_path / "cache"), BYTES)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not list(tmp_path.glob("cache/stores/*/meta.json")), "nothing half-built is left"


def test_few_records_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"number {n}"}) for n in range(60)] + ["{bad", '{"body": "x"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    config = text_data(tmp_path / "a.jsonl", tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"2 of 62 records \(3.23%\).*the first: .*line 61 is not JSON.*share=0.04"):
        prepare(config, BYTES)
    config.max_bad_share = 0.04
    store = prepare(config, BYTES).stores["text"]
    assert store.meta["unusable"] == 2
    listed = (Path(store.place) / "parts" / "00000" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["place"].rpartition(" ")[2] for line in listed] == ["61", "62"]


def test_text_that_weighs_nothing_is_refused(tmp_path: Path) -> None:
    rows = [{"text": f"number {n}", "w": int(n > 90)} for n in range(99)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"data.paths=[{tmp_path / 'a.jsonl'}]", f"data.cache_dir={tmp_path / 'cache'}", "data.holdout_every=4"]
    experiment = tiny_experiment("data=text_files", *words, "data.weight_key=w", "data.seq_len=8")
    assert prepare_task(experiment, lambda *_: None)
    experiment.data.weight_key = "v"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row | {"v": 0}) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="data.weight_key='v': all training text of 'text' weighs 0"):
        prepare_task(experiment, lambda *_: None)


def test_files_that_are_not_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name in ("a.txt", "b.txt", "c.pdf", "d.PDF", ".e.txt"):
        (tmp_path / "corpus" / name).write_text("some words\n" * 50)
    data = prepare(text_data(tmp_path / "corpus", tmp_path / "cache"), BYTES)
    assert data.notes == ("data 'text': files that are not read: 1 hidden, 1 .pdf, 1 .PDF",)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    secret = tmp_path / "a.txt"
    secret.write_text("x")
    config = text_data(secret, tmp_path / "cache")
    sources = build_sources(config)
    secret.unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*a\.txt"):
        list(sources["text"].documents())


def test_no_paths_and_unknown_protocol(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data.paths"):
        build_sources(DataConfig(source=Source.text_files))
    with pytest.raises(ConfigError, match="nosuch"):
        build_sources(DataConfig(paths=["nosuch://bucket/x"]))


def test_stdlib_is_there_without_tests_and_split_by_name() -> None:
    (source,) = build_sources(DataConfig(source=Source.python_stdlib)).values()
    names = [file.name for file in source.files]
    assert {"json/decoder.py", "argparse.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name or "/test" in name or name.startswith("test/")]
    assert 8e6 < source.num_bytes < 40e6
    held = {name for name in names if source.held_out(name)}
    assert 0.01 < len(held) / len(names) < 0.1
    assert held == {name for name in names if source.held_out(name)}


def test_store_round_trip_and_counts(corpus: Path, tmp_path: Path) -> None:
    data = prepare(text_data(corpus, tmp_path / "cache"), BYTES)
    store, tokenizer = data.stores["text"], data.tokenizer
    splits = store.meta["splits"]
    assert splits[TRAIN]["documents"] + splits[HELDOUT]["documents"] == 60
    for split in (TRAIN, HELDOUT):
        tokens = store.windows(split, [0], store.num_tokens(split))[0]
        ends = store.document_ends(split)
        assert tokens[0] == tokens[-1] == tokenizer.end_id
        assert (tokens[ends] == tokenizer.end_id).all()
        assert (tokens == tokenizer.end_id).sum() == splits[split]["documents"] + 1
        assert splits[split]["bytes"] == len(tokens) - len(ends) - 1
    held_out = {tokenizer.decode(t) for t in np.split(tokens, ends)} - {""}
    originals = {p.read_text() for p in corpus.iterdir()}
    assert {text for text in held_out if text} <= originals
    assert store.bytes_per_token(HELDOUT) == pytest.approx(splits[HELDOUT]["bytes"] / (splits[HELDOUT]["tokens"] - 1))


def test_stored_weights_belong_to_their_tokens(tmp_path: Path) -> None:
    """Spans are of characters, of which one may be two tokens; the end token weighs as the last one."""
    expected = {"abcd": [0.5] * 5, "naïve": [2, 2, 0, 0, 1, 3, 3], "zz": [1, 4, 4]}
    weights = {"abcd": 0.5, "naïve": [[0, 2, 2], [2, 3, 0], [4, 5, 3]], "zz": [[1, 2, 4]]}
    lines = [json.dumps({"text": text, "w": weights[text], "id": f"{text}{n}"}) for n in range(9) for text in expected]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    config = text_data(tmp_path / "a.jsonl", tmp_path / "cache", weight_key="w", id_key="id")
    store, seen = prepare(config, BYTES).stores["text"], 0
    for split in (TRAIN, HELDOUT):
        count = store.num_tokens(split)
        tokens, weighs = store.windows(split, [0], count)[0], store.weights(split, [0], [count])[0]
        begin = 1
        for end in store.document_ends(split):
            text = bytes(tokens[begin:end].astype(np.uint8)).decode()
            assert weighs[begin : end + 1].tolist() == expected[text]
            begin, seen = end + 1, seen + 1
    assert seen == len(lines)


def test_a_token_weighs_what_its_last_character_does() -> None:
    text = "the cat sat on the mat, the cat sat on the hat"
    tokenizer = train_bpe([text * 9], bpe(270))
    ids = tokenizer.encode_batch([text])[0]
    lasts = np.cumsum([len(tokenizer.decode([int(one)])) for one in ids])
    assert len(ids) < len(text)
    numbered = [[n, n + 1, n + 1] for n in range(len(text))]
    got = token_weights(tokenizer, _Text("a", [text[:3], text[3:]], numbered), len(ids))
    assert got.tolist() == [*lasts.tolist(), lasts[-1]]


def test_cache_is_used_and_follows_changes(corpus: Path, tmp_path: Path) -> None:
    config = text_data(corpus, tmp_path / "cache")
    first = prepare(config, BYTES).stores["text"].place
    stamp = (Path(first) / "meta.json").stat().st_mtime_ns
    assert prepare(config, BYTES).stores["text"].place == first
    assert (Path(first) / "meta.json").stat().st_mtime_ns == stamp
    (corpus / "00.txt").write_text("changed")
    assert prepare(config, BYTES).stores["text"].place != first
    assert prepare(text_data(corpus, tmp_path / "cache", holdout_every=7), BYTES).stores["text"].place != first


def test_a_failed_build_leaves_nothing(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    def explode(*_):
        raise RuntimeError("power cut")

    monkeypatch.setattr(PartWriter, "close", explode)
    with pytest.raises(RuntimeError, match="power cut"):
        prepare(text_data(corpus, tmp_path / "cache"), BYTES)
    assert list((tmp_path / "cache" / "stores").iterdir()) == []


def test_a_single_book_holds_out_its_end(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("".join(f"line {i}\n" for i in range(1000)))
    (source,) = build_sources(DataConfig(paths=[str(tmp_path / "book.txt")], holdout_every=10)).values()
    cut = find_cut(source)
    ((train_side, train), (held_side, rest)) = cut(next(source.documents()), False)
    assert (train_side, held_side) == (TRAIN, HELDOUT)
    assert train + rest == (tmp_path / "book.txt").read_text()
    assert len(rest) == pytest.approx(len(train + rest) / 10, abs=1)


def test_a_flipped_bit_in_the_store_raises(corpus: Path, tmp_path: Path) -> None:
    store = prepare(text_data(corpus, tmp_path / "cache"), BYTES).stores["text"]
    chunk = Path(store.place) / "parts" / "00000" / TRAIN / "tokens" / "c" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[100] ^= 1
    os.chmod(chunk, 0o644)
    chunk.write_bytes(damaged)
    with pytest.raises(CorruptError, match=r"parts/00000/train/tokens/c/0 is damaged.*data.on_corrupt=skip"):
        TokenStore(store.place).windows(TRAIN, [0], 64)


def test_writer_crosses_shards(tmp_path: Path) -> None:
    writer = ArrayWriter(tmp_path / "a", Array("uint16", shard=64, chunk=16))
    values = np.random.default_rng(0).integers(0, 60_000, 1000)
    for part in np.split(values, [3, 70, 71, 400]):
        writer.append(part)
    writer.close()
    assert writer.written == 1000
    import tensorstore as ts

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")}}
    np.testing.assert_array_equal(ts.open(spec).result().read().result(), values)
    assert len(list((tmp_path / "a" / "c").iterdir())) == -(-1000 // 64)


TEXTS = ["def f(x):\n    return x + 1\n" * 40, "naïve café 😀 " * 50, "0123456789" * 30]


def bpe(vocab_size: int, **changes) -> TokenizerConfig:
    return TokenizerConfig(kind=TokenizerKind.bpe, vocab_size=vocab_size, **({"end_token": "<end>"} | changes))


def test_bpe_round_trip_and_determinism(tmp_path: Path) -> None:
    one, two = (train_bpe(TEXTS, bpe(300)) for _ in range(2))
    assert one.sha256() == two.sha256()
    assert one.vocab_size == 300
    for text, ids in zip(TEXTS, one.encode_batch(TEXTS), strict=True):
        assert one.decode(ids) == text
        assert len(ids) < len(text.encode())
        assert one.end_id not in ids
    one.save(tmp_path / "t.json")
    assert load_tokenizer(tmp_path / "t.json", bpe(300)).sha256() == one.sha256()


def test_bytes_round_trip(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text.encode())
    tokenizer.save(tmp_path / "t.json")
    assert isinstance(load_tokenizer(tmp_path / "t.json", BYTES), ByteTokenizer)


def test_tokenizer_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_tokenizer(tmp_path / "none.json", bpe(300))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a tokenizer.json"):
        load_tokenizer(tmp_path / "bad.json", bpe(300))
    train_bpe(TEXTS, bpe(300, end_token="<|end|>")).save(tmp_path / "t.json")
    with pytest.raises(ConfigError, match=r"'<end>' is not in the vocabulary.*<\|end\|>"):
        load_tokenizer(tmp_path / "t.json", bpe(300))


def test_held_out_text_does_not_train_the_tokenizer(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    config = text_data(corpus, tmp_path / "cache", holdout_every=2)
    (source,) = build_sources(text_data(__file__, tmp_path, holdout_every=2)).values()
    for number in range(20):
        name = f"{number}.txt"
        (corpus / name).write_text("zqzq " * 200 if source.held_out(name) else f"plain text number {number} " * 20)
    data = prepare(config, TokenizerConfig(kind=TokenizerKind.bpe, vocab_size=280))
    assert len(data.tokenizer.encode_batch(["zqzq"])[0]) == 4


def test_a_small_corpus_gives_a_small_vocabulary(corpus: Path, tmp_path: Path) -> None:
    """A note says so; a model whose size is set does not follow."""
    data = text_data(corpus, tmp_path / "cache")
    codec = prepare(data, bpe(5000)).tokenizer
    assert 257 < codec.vocab_size < 5000
    (note,) = codec.notes
    assert note.startswith("tokenizer.vocab_size=5000: ")
    assert note.endswith(f"the vocabulary has {codec.vocab_size}")
    assert prepare(data, bpe(5000)).tokenizer.notes == [note], "from the cache, too"
    with pytest.raises(ConfigError, match=r"=5000.*model.vocab_size=6000.*=0.*tokenizer") as caught:
        prepare(data, bpe(5000), vocab_size=6000)
    assert f"set tokenizer.vocab_size={codec.vocab_size}" in str(caught.value)


def test_a_tokenizer_sees_all_parts_of_a_mixture(tmp_path: Path) -> None:
    """Half of it is Japanese, and the weights are part of what the tokenizer is made from."""
    for name, text in (("en", "english words "), ("ja", "\u65e5\u672c\u8a9e\u306e\u6587 ")):
        (tmp_path / name).mkdir()
        for number in range(30):
            (tmp_path / name / f"{number:02}.txt").write_text(text * 4000)

    def used(**weights: float) -> dict[str, int]:
        parts = {name: SourceConfig(paths=[str(tmp_path / name)], weight=weight) for name, weight in weights.items()}
        data = prepare(DataConfig(mixture=parts, cache_dir=str(tmp_path / "cache")), bpe(257, train_mb=1))
        return {name: one["bytes"] for name, one in data.tokenizer.trained_on.items()}

    assert used(en=0.5, ja=0.5) == {"en": 500_000, "ja": 500_000}
    assert used(en=3.0, ja=1.0) == {"en": 750_000, "ja": 250_000}
    assert used(en=3.0, ja=0.0) == {"en": 1_000_000}


def test_mixture_builds_a_store_a_part(corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(json.dumps(list(range(2000))))
    parts = {"a": SourceConfig(paths=[str(corpus)], weight=3.0), "b": SourceConfig(paths=[str(other)], weight=1.0)}
    data = prepare(DataConfig(mixture=parts, cache_dir=str(tmp_path / "cache")), BYTES)
    assert data.weights == {"a": 3.0, "b": 1.0}
    assert data.stores["a"].place != data.stores["b"].place
    with pytest.raises(ConfigError, match="weight"):
        build_sources(DataConfig(mixture={"a": SourceConfig(paths=["x"], weight=0.0)}))


def test_wide_vocabularies_are_stored_in_32_bits(corpus: Path, tmp_path: Path) -> None:
    many = TokenizerConfig(kind=TokenizerKind.bytes, sentinels=70_000)
    store = prepare(text_data(corpus, tmp_path / "cache"), many).stores["text"]
    assert store.frame._array(0, "train/tokens").dtype.name == "uint32"
