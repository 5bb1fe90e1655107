"""What the page of a token store shows, read from the store."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.data.store.tokens import SPLITS, TRAIN, TokenStore
from lmkit.data.tokens.tokenizer import Tokenizer
from lmkit.files import write_text
from lmkit.pages.store import StoreFacts, draw_store

_SAMPLES, _SAMPLE_TOKENS = 5, 400


def write_page(
    store: TokenStore, tokenizer: Tokenizer, fertility: dict[str, Any] | None = None, corpus: Path | None = None
) -> Path | None:
    """Writes STORE/report.html; None where the store is far away or another's. Arguments as in `draw_store`."""
    if "://" in store.place or not os.access(store.place, os.W_OK):
        return None
    counts = store.meta["splits"]
    whole = {name: sum(counts[split][name] for split in SPLITS) for name in ("tokens", "documents", "bytes")}
    facts = StoreFacts(
        whole["tokens"], whole["tokens"] - counts[TRAIN]["tokens"], whole["documents"], counts[TRAIN]["documents"],
        whole["bytes"], store.meta["vocab_size"], store.meta["tokenizer_sha256"], len(store.meta["parts"]),
        _lengths(store), _samples(store, tokenizer),
    )  # fmt: skip
    path = Path(store.place) / "report.html"
    write_text(path, draw_store(facts, fertility, corpus))
    return path


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
