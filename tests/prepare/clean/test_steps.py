"""Each step alone: what it changes, what it drops, what it leaves."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datatrove", reason="LOUD: cleaning is not tested; pip install 'lmkit[prepare]'")

from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature

from lmkit.config import ConfigError
from lmkit.config.sections.clean import CleanConfig, Pii
from lmkit.data.sources.listing import expand
from lmkit.data.sources.text import TEXT_SUFFIXES, TextSource
from lmkit.prepare.clean.decontaminate import Decontaminate, write_index
from lmkit.prepare.clean.exact import DropCopies, FindCopies, Hash
from lmkit.prepare.clean.near import Cluster, Spaces, minhash_config, words_of
from lmkit.prepare.clean.pii import Scrub
from lmkit.prepare.clean.run import NGramsDecontConfig
from lmkit.prepare.clean.steps import Drop, Keep, Language, Normalise, ReadBack, Texts, rows_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e\u0301te\u0301", "été"),
        ("a\r\nb\rc\u2028d\x0be\x85f", "a\nb\nc\nd\ne\nf"),
        ("a\u00a0 \t b", "a b"),
        ("  a  \n\n\n\n  b  ", "a\n\nb"),
        ("a\x00\x1b[0mb\ufeff\u200b\u00adc\u202ed", "a[0mbcd"),
        ("日本語　テキスト", "日本語 テキスト"),
        ("x² ﬁ Å", "x² ﬁ Å"),  # compatibility forms are other characters: they stay
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert Normalise().format(text) == expected
    assert Normalise().format(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail jane.o'neil+x@mail.example.co.uk, now", "mail [EMAIL], now"),
        ("<a@b.org>", "<[EMAIL]>"),
        ("from 8.8.8.8 and 2001:4860:4860::8888.", "from [IP] and [IP]."),
        ("(555) 234-5678 or 555-234-5678 or 555.234.5678", "[PHONE] or [PHONE] or [PHONE]"),
        ("+44 20 7946 0958, +49 (0)89 1234567; 1-800-555-0199", "[PHONE], [PHONE]; [PHONE]"),
        ("030 1234 5678 or (030) 12345678", "[PHONE] or [PHONE]"),
    ],
)
def test_addresses_are_replaced(text: str, expected: str) -> None:
    assert Scrub(list(Pii)).format(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "$1,234,567 in 1865-1866, 3.14159 and 2024-01-31 12:30:45",
        "127.0.0.1 and 10.0.0.1 are nobody's; version 1.2.3.4.5; ISBN 978-0-306-40615-7",
        "12:34:56 and ::1 and std::vector<int>::iterator",
        "0123456789012345678901234567890 and 555-2345 and 1234-567-8901",
        "me@localhost and @somebody and a @ b.com",
    ],
)
def test_what_is_no_address_stays(text: str) -> None:
    assert Scrub(list(Pii)).format(text) == text


def test_only_what_was_asked_for_is_replaced_and_counted() -> None:
    scrub = Scrub([Pii.email])
    assert scrub.format("a@b.org 8.8.8.8 c@d.org [EMAIL]") == "[EMAIL] 8.8.8.8 [EMAIL] [EMAIL]"
    assert {name: stat.total for name, stat in scrub.stats.stats.items()} == {"email": 2}


def test_language(tmp_path: Path) -> None:
    pytest.importorskip("py3langid", reason="LOUD: language is not tested; pip install 'lmkit[prepare]'")
    texts = ["The river is wide and the water is cold.", "Der Fluss ist breit und das Wasser kalt.", "42 !"]
    step = Language(["en"], 0.65, Drop(tmp_path, None))
    kept = list(step.run((Document(text=t, id=str(n)) for n, t in enumerate(texts)), 0, 1))
    assert [document.id for document in kept] == ["0"]
    reasons = {row["id"]: row["reason"] for row in rows_of(tmp_path / "00000.jsonl")}
    assert reasons["1"] == "language de"
    assert reasons["2"].startswith("language")


def test_dropped_texts_hold_no_addresses(tmp_path: Path) -> None:
    with Drop(tmp_path, Scrub([Pii.email])) as drop:
        drop.write(Document(text="write to a@b.org", id="x", metadata={"filter_reason": "why"}), 3)
    assert list(rows_of(tmp_path / "00003.jsonl")) == [{"id": "x", "text": "write to [EMAIL]", "reason": "why"}]


@pytest.mark.parametrize("tasks", [1, 3])
def test_of_equal_texts_the_first_stays(tasks: int, tmp_path: Path) -> None:
    """In the order of tasks, then of lines; a task without a document shifts nothing."""
    rng = random.Random(tasks)
    pieces = [[str(rng.randrange(30)) for _ in range(25)] for _ in range(tasks)]
    pieces[-1] = pieces[-1] if tasks == 1 else []
    for task, piece in enumerate(pieces):
        documents = (Document(text=text, id=f"{task}:{line}") for line, text in enumerate(piece))
        list(Hash(tmp_path / "hashes").run(documents, task, tasks))
    for task in range(tasks):
        FindCopies(tmp_path / "hashes", tmp_path / "copies").run(None, task, tasks)
    kept, seen, expected = [], set(), []
    for task, piece in enumerate(pieces):
        documents = (Document(text=text, id=f"{task}:{line}") for line, text in enumerate(piece))
        kept += [
            d.id for d in DropCopies(tmp_path / "copies", Drop(tmp_path / "dropped", None)).run(documents, task, tasks)
        ]
        for line, text in enumerate(piece):
            expected += [] if text in seen else [f"{task}:{line}"]
            seen.add(text)
    assert kept == expected


def test_read_back_gives_a_task_its_own_file(tmp_path: Path) -> None:
    with Keep(tmp_path) as keep:
        keep.write(Document(text="a\u2028b", id="x"), 2)
    texts = Texts(tmp_path, 3, [])
    assert [d.text for d in ReadBack(texts).run(None, 2, 3)] == ["a\u2028b"]
    assert list(ReadBack(texts).run(None, 0, 3)) == []


@pytest.mark.parametrize("near", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_buckets_follow_from_the_threshold(near: float) -> None:
    config = minhash_config(CleanConfig(near=near))
    meet = lambda s: 1 - (1 - s**config.hashes_per_bucket) ** config.num_buckets  # noqa: E731
    assert config.num_buckets * config.hashes_per_bucket <= 128
    assert meet(near) >= 0.97
    assert near < 0.5 or meet(near - 0.3) < 0.5, "most of what is not alike is never compared"


def test_buckets_as_set() -> None:
    config = minhash_config(CleanConfig(near=0.72, near_buckets=14, near_rows=8, near_ngram=4))
    assert (config.num_buckets, config.hashes_per_bucket, config.n_grams) == (14, 8, 4)
    with pytest.raises(ConfigError, match="near_buckets=14 with data.clean.near_rows=0"):
        CleanConfig(near=0.72, near_buckets=14)


def test_words_without_spaces_are_parted_by_a_dictionary() -> None:
    assert isinstance(words_of(CleanConfig()), Spaces)
    assert words_of(CleanConfig(words="jpn")) == "jpn"


def test_a_chain_is_not_a_cluster(tmp_path: Path) -> None:
    """Each text shares 0.85 with the one before; the first and the last share little, so both stay."""
    words = [f"w{n}" for n in range(400)]
    texts = [" ".join(words[start : start + 200]) for start in range(0, 121, 15)]
    config = minhash_config(CleanConfig(near=0.8))
    signing = MinhashDedupSignature(str(tmp_path / "signatures"), config, words_of(CleanConfig()))  # type: ignore[arg-type]
    documents = [Document(text=text, id=str(n)) for n, text in enumerate(texts)]
    with Keep(tmp_path / "texts") as keep:
        for document in documents:
            keep.write(document, 0)
    signing.run(iter(documents), 0, 1)  # type: ignore[arg-type]
    (tmp_path / "pairs").mkdir()
    pairs = np.array([[0, n, 0, n + 1] for n in range(len(texts) - 1)], "<u4")
    pairs.tofile(tmp_path / "pairs" / "00000_00.dups")
    Cluster(tmp_path, Texts(tmp_path / "texts", 1, []), signing, 0.8).run()
    # (200 - 15) / (200 + 15) = 0.86 is alike, (200 - 30) / (200 + 30) = 0.74 is not: every second one goes.
    assert np.fromfile(tmp_path / "near" / "000000.remove", "<u4").tolist() == [1, 3, 5, 7]
    assert json.loads((tmp_path / "near" / "clusters.json").read_text())["sizes"] == [[2, 4]]


def test_contaminated(tmp_path: Path) -> None:
    passage = "one two three four five six seven eight nine ten"
    (tmp_path / "set.jsonl").write_text(json.dumps({"text": passage}) + "\n" + json.dumps({"text": "too short"}) + "\n")
    source = TextSource(expand(str(tmp_path / "set.jsonl"), TEXT_SUFFIXES), "text", 20)
    runs = NGramsDecontConfig(n_grams=8)
    assert write_index(source, tmp_path / "index", runs, Spaces()) == {"texts": 2, "too_short": 1}
    step = Decontaminate(str(tmp_path / "index"), runs, Drop(tmp_path / "dropped", None), Spaces())  # type: ignore[arg-type]
    texts = [
        "Before: ONE two, three\nfour five six seven eight after",
        "one two three four five six seven after",
        passage,
    ]
    kept = list(step.run((Document(text=t, id=str(n)) for n, t in enumerate(texts)), 0, 1))
    assert [document.id for document in kept] == ["1"]
    with pytest.raises(ConfigError, match="none of 2 texts has 13 words; set data.clean.decontaminate_ngram lower"):
        write_index(source, tmp_path / "index", NGramsDecontConfig(n_grams=13), Spaces())
