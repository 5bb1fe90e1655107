"""The page of a token store: how much there is, how long documents are, how they look, what was dropped before."""

from pathlib import Path
from typing import Any, NamedTuple

from lmkit.console import size
from lmkit.pages.chart import compact, escape, exact
from lmkit.pages.page import Row, bars, cards, html_page, texts


class StoreFacts(NamedTuple):
    """What is shown of a token store."""

    tokens: int
    heldout_tokens: int
    documents: int
    train_documents: int
    num_bytes: int
    vocab_size: int
    tokenizer_hash: str
    num_parts: int
    lengths: list[Row]  # of documents, in tokens: (which, how many, of how many)
    samples: list[tuple[str, str]]  # (name, text) of some documents


def draw_store(facts: StoreFacts, fertility: dict[str, Any] | None = None, corpus: Path | None = None) -> str:
    """The page of a token store.

    `fertility`: figures of held-out text; `corpus`: the folder of the cleaned corpus, whose page is linked.
    """
    figures = [
        ("Tokens", compact(facts.tokens, 3), f"{facts.heldout_tokens / max(facts.tokens, 1):.2%} held out"),
        ("Documents", compact(facts.documents, 3), f"{facts.train_documents:,} to train on"),
        ("Text", size(facts.num_bytes), f"{exact(facts.num_bytes / max(facts.tokens, 1))} bytes a token"),
        ("Vocabulary", f"{facts.vocab_size:,}", f"tokenizer {facts.tokenizer_hash[:12]}"),
    ]
    href = f'<a href="{corpus / "report.html"}">what was dropped when the corpus was cleaned</a>' if corpus else ""
    parts = [
        ("", cards(figures)),
        ("", f"<p>Before: {href}</p>" if href else ""),
        ("The tokenizer on held-out text", _fertility(fertility) if fertility else ""),
        ("Lengths of the documents to train on, in tokens", bars(facts.lengths)),
        ("Documents", "".join(texts(name, [{"id": "", "text": text}]) for name, text in facts.samples)),
    ]
    return html_page("A token store", f"in {facts.num_parts} part(s)", parts)


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
