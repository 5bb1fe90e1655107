"""The page shows what the card says, and no text of a corpus gets out of its quotes."""

import re
from typing import Any

import pytest

from lmkit.pages.corpus import page

HOSTILE = "<script>alert(1)</script>\" onload='x' & \u202e"


def card(**changes: Any) -> dict[str, Any]:
    text = {"id": HOSTILE, "text": HOSTILE}
    return {
        "documents": {"source": 1000, "kept": 640},
        "bytes": {"source": 3 << 20, "kept": 1 << 20},
        "steps": [
            {"step": "empty", "in": 1000, "out": 1000, "dropped": {}},
            {"step": "near", "in": 1000, "out": 640, "dropped": {f"near {HOSTILE}": 360}},
        ],
        "pii": {"email": 12, "ip": 0},
        "quarantine": {"records": 3, "first": [{"place": HOSTILE, "reason": HOSTILE, "sample": HOSTILE}]},
        "lengths": {"source": {"64": 900, "256": 100}, "kept": {"64": 640}},
        "clusters": {"near": {"sizes": [[2, 7]], "largest": [{"size": 2, "documents": [text]}]}},
        "samples": {HOSTILE: [text]},
        "data.clean": {"near": 0.8, "decontaminate": [HOSTILE]},
    } | changes  # fmt: skip


def test_nothing_gets_out_of_its_quotes() -> None:
    html = page(card())
    assert "<script" not in html
    assert "onload='x'" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 10
    assert "default-src 'none'" in html
    assert not re.search(r"(src|href)=\"(?!data:)", html), "it asks for nothing from outside"


def test_the_figures_are_there() -> None:
    html = page(card(tokens=262_144))
    for text in (
        "640 of 1,000 documents stay",
        "64.00% of those read",
        "33.33% of 3.00 MiB",
        "36.00%",
        "262k",
        "4 bytes each",
    ):
        assert text in html
    assert "2 more in quarantine.jsonl" in html
    assert html.count('<div title="below') == 3, "64, 128 and 256: a power without a document has its place"


def test_a_corpus_with_nothing_to_tell() -> None:
    nothing: dict[str, Any] = {"source": 0, "kept": 0}
    empty = {"steps": [], "pii": {}, "samples": {}, "clusters": {}, "lengths": {"source": {}, "kept": {}}}
    html = page(card(documents=nothing, bytes=nothing, quarantine={"records": 0, "first": []}, **empty))
    assert "Every record could be read." in html


@pytest.mark.parametrize("size", [0, 5])
def test_clusters_are_listed_or_said_to_be_none(size: int) -> None:
    found = {"sizes": [[2, size]] if size else [], "largest": []}
    html = page(card(clusters={"exact": found}))
    assert ("exact: none" in html) == (size == 0)
