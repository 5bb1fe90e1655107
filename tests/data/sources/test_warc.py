"""Web archives: which records are documents, and archives that are cut short."""

import gzip
import io
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("warcio", reason="LOUD: warcio is not installed, web archives are not tested")

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.data.sources.text import Bad, Document, build_sources

PAGE = """<html><head><title>t</title><style>p {{}}</style></head><body>
<nav><a href="/">Home</a> <a href="/b">Blog</a></nav>
<main><article><h1>On {0}</h1><p>{1}</p></article></main><footer>Imprint</footer></body></html>"""
PROSE = "A naïve sentence about ships and the sea. " * 8


def write(path: Path, records: list[tuple[str, str, bytes, str]], packed: bool) -> Path:
    """Records of (type, kind of content, body, status)."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=packed)
        for number, (kind, content, body, status) in enumerate(records):
            http = StatusAndHeaders(status, [("Content-Type", content)], protocol="HTTP/1.1") if status else None
            headers = {"WARC-Record-ID": f"<urn:{number}>"}
            record = writer.create_warc_record(
                f"http://a.example/{number}", kind, payload=io.BytesIO(body), http_headers=http,
                warc_content_type=content if not http else "application/http; msgtype=response",
                warc_headers_dict=headers,
            )  # fmt: skip
            writer.write_record(record)
    return path


def read(path: Path, **changes: Any) -> tuple[list[Document], list[Bad]]:
    bad: list[Bad] = []
    config = DataConfig(source=Source.warc, paths=[str(path)], **changes)
    return list(build_sources(config)["text"].documents(bad=bad.append)), bad


WET = [("warcinfo", "application/warc-fields", b"software: x\r\n", "")] + [
    ("conversion", "text/plain", f"page {n}: {PROSE}".encode(), "") for n in range(5)
]


@pytest.mark.parametrize("name", ["a.warc.wet", "a.warc.wet.gz"])
def test_converted_pages(tmp_path: Path, name: str) -> None:
    records = [*WET, ("conversion", "text/plain", b"caf\xe9", "")]
    write(tmp_path / name, records, name.endswith(".gz"))
    documents, (bad,) = read(tmp_path)
    assert documents == [Document(f"{name}:{n + 2}", f"page {n}: {PROSE}") for n in range(5)]
    assert (bad.place, bad.reason) == (
        f"file://{tmp_path}/{name} record 7",
        "is not UTF-8: byte 0xe9 at 3 (iconv -t utf-8 converts a file)",
    )
    assert [one.name for one in read(tmp_path, id_key="WARC-Record-ID")[0]] == [f"<urn:{n}>" for n in range(1, 6)]
    assert read(tmp_path, id_key="X-Name")[1][0].reason == "has no header 'X-Name' (data.id_key)"


def test_one_archive_packed_as_a_whole(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.wet", WET, False).read_bytes()
    (tmp_path / "a.wet").unlink()
    (tmp_path / "a.wet.gz").write_bytes(gzip.compress(plain))
    assert len(read(tmp_path)[0]) == 5


@pytest.mark.parametrize("name", ["a.wet", "a.wet.gz"])
def test_a_cut_archive_gives_what_it_holds(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, WET, name.endswith(".gz")).read_bytes()
    for left in (30, 150, len(whole) // 2, len(whole) - 30):
        (tmp_path / name).write_bytes(whole[:left])
        documents, (bad,) = read(tmp_path)
        assert len(documents) < 5
        assert all(one.text == f"page {n}: {PROSE}" for n, one in enumerate(documents))
        assert f"{name} after record" in bad.place
        assert "damaged or cut short" in bad.reason, left
    (tmp_path / name).write_bytes(b"no archive at all\n" * 9)
    assert "damaged or cut short" in read(tmp_path)[1][0].reason


def test_pages(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse", reason="LOUD: resiliparse is not installed, text of HTML pages is not tested")
    page = PAGE.format("ships", PROSE)
    write(tmp_path / "a.warc.gz", [
        ("response", "text/html; charset=utf-8", page.encode(), "200 OK"),
        ("response", "text/html; charset=iso-8859-1", page.encode("latin-1"), "200 OK"),
        ("response", "text/html", page.encode(), "404 Not Found"),
        ("response", "image/png", b"\x89PNG", "200 OK"),
        ("response", "text/plain; charset=latin-1", "naïve".encode("latin-1"), "200 OK"),
        ("response", "text/plain", "naïve".encode("latin-1"), "200 OK"),
        ("response", "text/html", b"<html><body><img src=x></body></html>", "200 OK"),
    ], True)  # fmt: skip
    documents, bad = read(tmp_path)
    assert [one.name for one in documents] == ["a.warc.gz:1", "a.warc.gz:2", "a.warc.gz:5"]
    for one in documents[:2]:
        assert "On ships" in one.text
        assert one.text.count("A naïve sentence") == 8
        assert not any(word in one.text for word in ("Home", "Blog", "Imprint", "{}"))
    assert documents[2].text == "naïve"
    assert [(one.place[-1], one.reason.partition(":")[0]) for one in bad] == [
        ("6", "is not utf-8"), ("7", "is a page without text of its own"),
    ]  # fmt: skip


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "a.wet", WET, False)
    monkeypatch.setitem(__import__("sys").modules, "warcio.archiveiterator", None)
    with pytest.raises(ConfigError, match=r"needs warcio: pip install 'lmkit\[warc\]'"):
        read(tmp_path)
