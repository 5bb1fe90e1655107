"""Which files a path names: as they are called, with any suffix's case; what is left out is counted."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.data.sources import text
from lmkit.data.sources.listing import ANY, expand, left_out_note
from lmkit.data.sources.records import RecordSource
from lmkit.data.sources.text import TextSource, build_sources


def texts(path: Path | str, **changes) -> dict[str, str]:
    return {one.name: one.text for one in build_sources(DataConfig(paths=[str(path)], **changes))["text"].documents()}


ODD = [
    "File::Basename.txt",
    "p[1].txt",
    "what?.txt",
    "a*b.txt",
    "memory:x.txt",
    "a#b.txt",
    "100%.txt",
    "zip::x.txt",
    "é.txt",
]


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(name)
    (tmp_path / "ab.txt").write_text("other")
    assert texts(tmp_path / name) == {name: name}
    assert texts(tmp_path) == {name: name, "ab.txt": "other"}
    assert texts(tmp_path, source=Source.tree) == {name: name, "ab.txt": "other"}
    (tmp_path / "in [brackets] :: x").mkdir()
    (tmp_path / "in [brackets] :: x" / name).write_text(name)
    assert texts(tmp_path / "in [brackets] :: x" / "*.txt") == {name: name}
    assert texts(tmp_path / "in [brackets] :: x") == {name: name}


def test_a_pattern_is_asked_for(tmp_path: Path) -> None:
    for name in ("p1.txt", "p2.txt", "q.txt", "deep/er/p3.txt", "deep/.p4.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(texts(tmp_path / "p[12].txt")) == ["p1.txt", "p2.txt"]
    assert list(texts(tmp_path / "p?.txt")) == ["p1.txt", "p2.txt"]
    assert list(texts(tmp_path / "**" / "p*.txt")) == ["deep/er/p3.txt", "p1.txt", "p2.txt"]
    with pytest.raises(ConfigError, match=r"'.*p9\*\.txt' matches no file"):
        texts(tmp_path / "p9*.txt")


def test_a_name_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xefve.txt")).write_text("x")
    with pytest.raises(ConfigError, match=r"the file name .*/na\\xefve\.txt is not UTF-8: rename the file") as caught:
        texts(tmp_path)
    assert str(caught.value).encode()


def test_suffixes_have_no_case_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    for name in ("a.TXT", "b.Txt", "c.MD", "d.pdf", "e.pdf", "LICENSE", ".hidden.txt", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "f.JSONL").write_text('{"text": "row"}\n')
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    assert texts(tmp_path) == {"a.TXT": "a.TXT", "b.Txt": "b.Txt", "c.MD": "c.MD", "f.JSONL:1": "row"}
    left_out: Counter[str] = Counter()
    expand(str(tmp_path), (".txt", ".md", ".jsonl"), left_out=left_out)
    assert left_out == {".pdf": 2, "hidden": 2, "without a suffix": 1, "links": 1}
    assert left_out_note(Counter({".pdf": 3, "hidden": 2})) == "3 .pdf, 2 hidden"
    assert build_sources(DataConfig(paths=[str(tmp_path)]))["text"].left_out == left_out
    with pytest.raises(ConfigError, match=r"matches no file .* \(there are 2 \.pdf\)"):
        texts(tmp_path / "*.pdf")
    left_out.clear()
    assert len(expand(str(tmp_path), ANY, left_out=left_out)) == 9
    assert left_out == {"links": 1}


def test_pictures_in_capitals_and_hidden_ones(tmp_path: Path) -> None:
    for name in ("cat/a.jpg", "cat/B.JPG", "dog/c.JPEG", "dog/d.txt", ".thumbs/e.jpg", "dog/.f.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    source = RecordSource(Source.image_folder, [str(tmp_path)], [], DataConfig())
    assert [(one.name, one.fields["label"]) for one in source.records()] == [
        ("cat/B.JPG", "cat"), ("cat/a.jpg", "cat"), ("dog/c.JPEG", "dog"),
    ]  # fmt: skip
    assert source.left_out == {"hidden": 2, ".txt": 1}


@pytest.mark.parametrize(("names", "words"), [
    (["train/cat/1.png", "test/cat/2.png"], r"'(train|test)/cat/\d\.png' lies more than one folder below"),
    (["cat/1.png", "2.png"], r"'2\.png' lies in .* beside the folders of classes"),
])  # fmt: skip
def test_classes_are_no_guess(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=words):
        RecordSource(Source.image_folder, [str(tmp_path)], [], DataConfig())
    alone = RecordSource(Source.image_folder, [str(tmp_path / names[0]).rpartition("/")[0]], [], DataConfig())
    assert [one.fields["label"] for one in alone.records()] == ["cat"]


def test_a_large_file_is_read_in_ranges_of_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.dumps({"text": "é" * (n * 37 % 90) + str(n)}, ensure_ascii=False) for n in range(120)]
    rows[7] = rows[100] = ""
    path = tmp_path / "a.jsonl"
    for end in ("\n", ""):
        path.write_bytes(b"\xef\xbb\xbf" + ("\n".join(rows) + end).encode())
        whole = list(build_sources(DataConfig(paths=[str(path)]))["text"].documents())
        assert [one.name for one in whole[:8]] == [f"a.jsonl:{n}" for n in (1, 2, 3, 4, 5, 6, 7, 9)]
        for size in (50, 700, path.stat().st_size // 2):
            with monkeypatch.context() as patch:
                patch.setattr(text, "RANGE_BYTES", size)
                patch.setattr(text, "MOST_RANGES", 400)
                source = build_sources(DataConfig(paths=[str(path)]))["text"]
            assert len(source.files) == min(path.stat().st_size // size, 400)
            assert source.num_bytes == path.stat().st_size
            assert list(source.documents()) == whole
            assert sorted(one for n in range(3) for one in source.documents(n, 3)) == sorted(whole)
            again = source.divided(7)
            assert len(again.files) >= max(7, len(source.files))
            assert again.num_bytes == source.num_bytes
            assert list(again.documents()) == whole
            bad = TextSource(source.files, "other", 20)
            places: list[str] = []
            assert not list(bad.documents(bad=lambda one, places=places: places.append(one.place)))
            assert places[:2] == [f"file://{path} line 1", f"file://{path} line 2"]
