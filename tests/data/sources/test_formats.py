"""What is malformed, where it stands, and that the rest is read all the same."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.data.sources.documents import Document
from lmkit.data.sources.files import File
from lmkit.data.sources.formats import Bad, Row, read_rows
from lmkit.data.sources.records import RecordSource
from lmkit.data.sources.text import TextSource, build_sources

GOOD = [{"text": f"text number {n}", "id": f"doc-{n}"} for n in range(3)]


def source_of(path: Path, **changes: Any) -> TextSource:
    return build_sources(DataConfig(paths=[str(path)], **changes))["text"]


def read(path: Path, **changes: Any) -> tuple[list[Document], list[Bad]]:
    bad: list[Bad] = []
    return list(source_of(path, **changes).documents(bad=bad.append)), bad


def lines(*records: Any) -> bytes:
    return b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in records)


@pytest.mark.parametrize(("line", "words", "sample"), [
    (b'{"text": "cut\n', "is not JSON", '{"text": "cut'),
    (b"[" * 100_000 + b"\n", "is not JSON", "[" * 200),
    (b"[1, 2]\n", "is a list, not an object", "[1, 2]"),
    ({"body": "x"}, "has no text under 'text', it has: body; set data.text_key=", "{'body': 'x'}"),
    ({"text": 7}, "has no text under 'text'", "{'text': 7}"),
    ({"text": None}, "has no text under 'text'", "{'text': None}"),
    (b'{"text": "caf\xe9"}\n', "is not UTF-8: byte 0xe9 at 13", '{"text": "caf\\xe9"}\n'),
    ({"text": "half \ud800"}, "half a character", "half \\ud800"),
])  # fmt: skip
def test_a_malformed_line_is_named_and_passed(tmp_path: Path, line: Any, words: str, sample: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(GOOD[0], line, GOOD[1], b"\n", GOOD[2]))
    documents, (bad,) = read(path)
    assert documents == [Document(f"a.jsonl:{n}", f"text number {i}") for i, n in enumerate([1, 3, 5])]
    assert (bad.place, bad.sample) == (f"file://{path} line 2", sample)
    assert words in bad.reason
    with pytest.raises(ConfigError) as caught:
        list(source_of(path).documents())
    assert str(caught.value) == f"data: {bad.place} {bad.reason}"


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(*GOOD))
    assert len(read(tmp_path)[0]) == 3


def test_a_cut_archive_gives_what_it_holds(tmp_path: Path) -> None:
    many = [{"text": f"{n} " + "x" * (n % 97)} for n in range(20_000)]
    whole = gzip.compress(lines(*many))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(*GOOD)))
    documents, (bad,) = read(tmp_path)
    assert 5_000 < len(documents) - 3 < 15_000
    assert bad.place == f"file://{tmp_path}/a.jsonl.gz after line {len(documents) - 3}"
    assert "damaged or cut short" in bad.reason
    assert documents[-1] == Document("b.jsonl.gz:3", "text number 2")


def test_plain_text_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("naïve".encode()))
    (tmp_path / "c.txt.gz").write_bytes(b"no archive")
    documents, bad = read(tmp_path)
    assert documents == [Document("b.txt.gz", "naïve")]
    assert [(one.place, one.reason.partition(":")[0]) for one in bad] == [
        (f"file://{tmp_path}/a.txt", "is not UTF-8"), (f"file://{tmp_path}/c.txt.gz", "is damaged or cut short"),
    ]  # fmt: skip


def test_parquet_rows_and_files(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="LOUD: pyarrow is not installed, .parquet is not tested")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["one", None, "three"], "id": [7, 8, 9], "w": [[[0.0, 2.0, 0.5]], None, []]})
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "c.parquet")
    noise = pyarrow.table({"text": [f"{n * 7919 % 10007} words" for n in range(9000)]})
    parquet.write_table(noise, tmp_path / "d.parquet", row_group_size=1000)
    damaged = bytearray((tmp_path / "d.parquet").read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 64] = bytes(64)
    (tmp_path / "d.parquet").write_bytes(damaged)
    documents, bad = read(tmp_path)
    assert documents[:2] == [Document("a.parquet:1", "one"), Document("a.parquet:3", "three")]
    assert len(documents) < 9000
    url = f"file://{tmp_path}"
    assert [one.place.split(" after")[0] for one in bad] == [
        f"{url}/a.parquet record 2", f"{url}/b.parquet", f"{url}/c.parquet", f"{url}/d.parquet",
    ]  # fmt: skip
    assert "has no column 'text', it has: body; set data.text_key=" in bad[2].reason
    (tmp_path / "c.parquet").unlink()
    named, _ = read(tmp_path / "a.parquet", id_key="id", weight_key="w")
    assert named == [Document("7", "one", [[0, 2, 0.5]]), Document("9", "three", [])]


def test_names_and_weights_of_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*[{"text": "abcdef", "id": f"n{n}"} | one for n, one in enumerate([
        {}, {"w": 0.5}, {"w": 0}, {"w": [[0, 3, 1], [3, 6, 0.25]]}, {"w": True}, {"w": "much"}, {"w": -1},
        {"w": [[0, 7, 1]]}, {"w": [[3, 2, 1]]}, {"w": [[0.5, 2, 1]]}, {"w": [[0, 2]]}, {"id": ""}, {"id": 12},
        {"id": None},
    ])]))  # fmt: skip
    documents, bad = read(path, id_key="id", weight_key="w")
    assert [(one.name, one.weights) for one in documents] == [
        ("n0", None), ("n1", 0.5), ("n2", 0), ("n3", [[0, 3, 1], [3, 6, 0.25]]), ("12", None),
    ]  # fmt: skip
    assert [int(one.place.split()[-1]) - 1 for one in bad] == [4, 5, 6, 7, 8, 9, 10, 11, 13]
    assert all("data.weight_key" in one.reason for one in bad[:7])
    assert all("data.id_key" in one.reason for one in bad[7:])
    assert [one.name for one in read(path)[0]][:2] == ["a.jsonl:1", "a.jsonl:2"]


def test_other_fields_are_another_corpus(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*GOOD))
    prints = {source_of(path, **one).fingerprint() for one in ({}, {"id_key": "id"}, {"weight_key": "id"})}
    assert len(prints) == 3


def test_a_tree_is_not_what_text_files_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*GOOD))
    tree, files = source_of(tmp_path, source=Source.tree), source_of(tmp_path)
    assert tree.files == files.files
    assert tree.fingerprint() != files.fingerprint()
    assert [one.name for one in tree.documents()] == ["a.jsonl"]


def test_a_tree_of_documents(tmp_path: Path) -> None:
    """As Debian's /usr/share/doc: names without endings, gzipped change logs, pictures between them."""
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "copyright").write_text("Licence: naïve")
    (package / "changelog.Debian.gz").write_bytes(gzip.compress(b"pkg (1.0)"))
    (package / "README").write_text("read me")
    (package / "README.link").symlink_to(package / "README")
    (package / "logo.png").write_bytes(b"\x89PNG\r\n")
    (package / "utf16").write_bytes("wide".encode("utf-16-le"))
    documents, bad = read(tmp_path, source=Source.tree)
    assert {one.name: one.text for one in documents} == {
        "pkg/copyright": "Licence: naïve", "pkg/changelog.Debian.gz": "pkg (1.0)", "pkg/README": "read me",
    }  # fmt: skip
    assert [(one.place, one.reason) for one in bad] == [
        (f"file://{package}/logo.png", "is not UTF-8: byte 0x89 at 0 (iconv -t utf-8 converts a file)"),
        (f"file://{package}/utf16", "is not text: a zero byte at 1"),
    ]


def test_caches_of_before_stay_valid() -> None:
    source = TextSource([File("file:///a.txt", "a.txt", 3, "17.5")], "text", 20)
    # sha256 of [[["a.txt", 3, "17.5"]], "text"] as JSON: what it was before id_key and weight_key
    assert source.fingerprint() == "5d8f7e004390e01c9293cdaed8c0e8a5d39792e3ef4a3d3815f1f4a650533e99"


def test_every_second_file(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_text(name)
    source = source_of(tmp_path)
    assert [one.text for one in source.documents(1, 2)] == ["b", "d"]
    assert sorted(one.text for n in range(3) for one in source.documents(n, 3)) == list("abcde")


@pytest.mark.parametrize(("name", "content", "good", "bad"), [
    ("a.csv", b"\xef\xbb\xbftext,label\r\nx,a\r\n\r\ny,b\r\n", [(1, "x"), (2, "y")], []),
    ("a.csv", b"text,label\n" + b"x" * 200_000 + b",a\n", [(1, "x" * 200_000)], []),
    ("a.csv", b"text,label\ncaf\xe9,a\nx,b\n", [(2, "x")], ["record 1 is not UTF-8: byte 0xe9 in 'text'"]),
    ("a.csv", b"t\xe9xt,label\nx,a\n", [], ["a.csv is not UTF-8: byte 0xe9 in 'header'"]),
    ("a.csv", b"text,label\nx, y,a\nz,b\nw\nv,c,,\n", [(2, "z"), (3, "w"), (4, "v")], ["record 1 has 3 fields, the h"]),
    ("a.csv", b'text,label\n"x"y,a\nz,b\n"never closed,c\nq,d\n', [(2, "z")],
     ["record 1 is no row of a .csv", "record 3 is no row of a .csv: unexpected end of data"]),
    ("a.csv", b"text,text\nx,y\n", [], ["a.csv has two columns named 'text'"]),
    ("a.csv", b"", [], []),
    ("a.TSV", b'text\tlabel\n"x\ny"\ta,b\n', [(1, "x\ny")], []),
    ("a.json", b' [{"text": "x"}, 7, {"text": "y"}]', [(1, "x"), (3, "y")], ["record 2 is a int, not an object"]),
    ("a.json", b'\xef\xbb\xbf{"text": "x"}', [(1, "x")], []),
    ("a.json", b'{"text": "x"}\n{"text": "y"}\n', [(1, "x"), (2, "y")], []),
    ("a.json", b'[{"text": "x"}, {"te', [], ["a.json is not JSON"]),
    ("a.json.gz", gzip.compress(b'[{"text": "x"}]', mtime=0), [(1, "x")], []),
    ("a.jsonl", b'{"text": "a\xe2\x80\xa8b"}\r\n', [(1, "a\u2028b")], []),
])  # fmt: skip
def test_one_reader_a_format(tmp_path: Path, name: str, content: bytes, good: list, bad: list[str]) -> None:
    """The same rows, and the same words for what is wrong, as records and as documents."""
    (tmp_path / name).write_bytes(content)
    found = list(read_rows(File(str(tmp_path / name), name, len(content), "")))
    rows = [(one.number, one.fields["text"]) for one in found if isinstance(one, Row)]
    wrong = [f"{one.place} {one.reason}" for one in found if isinstance(one, Bad)]
    assert rows == good
    assert len(wrong) == len(bad)
    assert all(word in one for word, one in zip(bad, wrong, strict=True)), wrong
    left: list[Bad] = []
    records = list(RecordSource(Source.records, [str(tmp_path / name)], [], DataConfig()).records(left.append))
    assert [(one.name, one.fields["text"]) for one in records] == [(f"{name}:{n}", text) for n, text in good]
    assert [f"{one.place} {one.reason}".removeprefix("file://") for one in left] == wrong
    if content:
        documents, left = read(tmp_path / name)
        assert [(one.name, one.text) for one in documents] == [(f"{name}:{n}", text) for n, text in good]
        assert [f"{one.place} {one.reason}".removeprefix("file://") for one in left] == wrong


def test_a_json_or_csv_file_counts_where_it_is_asked_for(tmp_path: Path) -> None:
    for name in ("a.json", "info.JSON"):
        (tmp_path / name).write_text('[{"text": "x"}]')
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfplain")
    assert read(tmp_path)[0] == [Document("b.txt", "plain")]
    assert [one.name for one in read(tmp_path / "*.json")[0]] == ["a.json:1"]
    assert [one.name for one in read(tmp_path / "info.JSON")[0]] == ["info.JSON:1"]


def test_half_a_character_in_a_name_and_a_weight_beyond_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        lines({"text": "x", "id": "\ud800"}, {"text": "x", "id": "a", "w": 10**400}, {"text": "x", "id": "b"})
    )
    documents, bad = read(path, id_key="id", weight_key="w")
    assert [one.name for one in documents] == ["b"]
    assert "half a character" in bad[0].reason
    assert "(data.weight_key)" in bad[1].reason
