"""The page of a token store: how much there is, how long documents are, how they look, what was dropped before."""

from pathlib import Path
from typing import Any

import numpy as np

from lmkit.data.store import SPLITS, TRAIN, TokenStore
from lmkit.data.tokenizer import Tokenizer
from lmkit.files import write_text
from lmkit.prepare.clean.report import bars, cards, html_page, size_of, texts
from lmkit.train.chart import compact, escape, exact

_SAMPLES, _SAMPLE_TOKENS = 5, 400


def write_page(
    store: TokenStore, tokenizer: Tokenizer, fertility: dict[str, Any] | None = None, corpus: Path | None = None
) -> Path | None:
    """Writes STORE/report.html; None where the store is far away.

    `fertility`: figures of held-out text; `corpus`: the folder of the cleaned corpus.
    """
    if "://" in store.place:
        return None
    counts = store.meta["splits"]
    whole = {name: sum(counts[split][name] for split in SPLITS) for name in ("tokens", "documents", "bytes")}
    held = 1 - counts[TRAIN]["tokens"] / max(whole["tokens"], 1)
    figures = [
        ("Tokens", compact(whole["tokens"], 3), f"{held:.2%} held out"),
        ("Documents", compact(whole["documents"], 3), f"{counts[TRAIN]['documents']:,} to train on"),
        ("Text", size_of(whole["bytes"]), f"{exact(whole['bytes'] / max(whole['tokens'], 1))} bytes a token"),
        ("Vocabulary", f"{store.meta['vocab_size']:,}", f"tokenizer {store.meta['tokenizer_sha256'][:12]}"),
    ]
    href = f'<a href="{corpus / "report.html"}">what was dropped when the corpus was cleaned</a>' if corpus else ""
    parts = [
        ("", cards(figures)),
        ("", f"<p>Before: {href}</p>" if href else ""),
        ("The tokenizer on held-out text", _fertility(fertility) if fertility else ""),
        ("Lengths of the documents to train on, in tokens", bars(_lengths(store))),
        ("Documents", "".join(texts(name, [{"id": "", "text": text}]) for name, text in _samples(store, tokenizer))),
    ]
    path = Path(store.place) / "report.html"
    write_text(path, html_page("A token store", f"in {len(store.meta['parts'])} part(s)", parts))
    return path


def _fertility(figures: dict[str, Any]) -> str:
    def told(name: str, write: str) -> str:
        return format(figures[name], write) if figures[name] is not None else "–"

    boxes = [
        ("Tokens a word", told("tokens_per_word", ".3f"), f"{figures['words']:,} words"),
        ("Bytes a token", told("bytes_per_token", ".3f"), f"{figures['tokens']:,} tokens"),
        ("Come back as they were", told("round_trip", ".2%"), f"of {figures['documents']:,} documents"),
        ("Unknown", told("unknown", ".3%"), f"{told('used', '.1%')} of the vocabulary occurs"),
    ]
    longest = " ".join(f"<code>{escape(repr(one))}</code>" for one in figures["longest"])
    return cards(boxes) + f'<p class="soft">Longest: {longest}</p>'


def _lengths(store: TokenStore) -> list[tuple[str, int, int]]:
    """(which, how many, of how many) by powers of two."""
    lengths = np.diff(store.document_ends(TRAIN), prepend=0) - 1
    powers = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(powers)
    shown = [(power, int(n)) for power, n in enumerate(counts) if n or power > powers.min()]
    return [(f"up to {1 << power:,}", n, len(lengths)) for power, n in shown]


def _samples(store: TokenStore, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The beginnings of some documents, spread over the store, with their names."""
    ends = store.document_ends(TRAIN)
    starts = np.concatenate([[0], ends[:-1]]) + 1
    found = []
    for number in np.unique(np.linspace(0, len(ends) - 1, _SAMPLES).astype(int)).tolist():
        stop = min(int(ends[number]), int(starts[number]) + _SAMPLE_TOKENS)
        (tokens,) = store.read(TRAIN, [int(starts[number])], [stop])
        found.append((store.document_name(TRAIN, number), tokenizer.decode(tokens.tolist())))
    return found
