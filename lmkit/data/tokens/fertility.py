"""What a tokenizer makes of text that it has not seen: tokens a word, bytes a token, whether the text comes back."""

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lmkit.data.tokens.tokenizer import FastTokenizer, Tokenizer, check_texts

_TOGETHER, _LONGEST = 64, 10


def fertility(tokenizer: Tokenizer, texts: Iterable[str], max_bytes: int = 10_000_000) -> dict[str, Any]:
    """Figures over whole texts, up to about `max_bytes` of them.

    tokens_per_word (the fertility of Rust et al. 2021; a word is what stands between white space, so the figure says
    little of scripts without it), bytes_per_token (UTF-8), round_trip: the share of texts for which decode(encode(x))
    is x, unknown: the share of tokens that stand for something unknown, used: the share of the vocabulary that occurs,
    longest: the longest tokens that occur, in characters; documents, words, bytes, tokens: the sums. Shares are None
    where there is no text.
    """
    check_texts(texts)
    unknown = unknown_id(tokenizer)
    documents = words = size = tokens = same = strange = 0
    seen = np.zeros(tokenizer.vocab_size, bool)
    left = iter(texts)
    while size < max_bytes and (batch := list(itertools.islice(left, _TOGETHER))):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            if size >= max_bytes:
                break
            documents, words, size, tokens = (
                documents + 1, words + len(text.split()), size + len(text.encode()), tokens + len(ids),
            )  # fmt: skip
            same += tokenizer.decode(ids) == text
            strange += 0 if unknown is None else int((np.asarray(ids) == unknown).sum())
            seen[ids] = True
    decoded = {int(one): tokenizer.decode([int(one)]) for one in np.flatnonzero(seen)}
    longest = sorted(decoded.items(), key=lambda item: (-len(item[1]), item[0]))[:_LONGEST]
    return {
        "vocab_size": tokenizer.vocab_size, "documents": documents, "words": words, "bytes": size, "tokens": tokens,
        "tokens_per_word": tokens / words if words else None, "bytes_per_token": size / tokens if tokens else None,
        "round_trip": same / documents if documents else None, "unknown": strange / tokens if tokens else None,
        "used": float(seen.mean()), "longest": [text for _, text in longest],
    }  # fmt: skip


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The token for what the vocabulary does not have; None where it has everything, or spells it in bytes."""
    if not isinstance(tokenizer, FastTokenizer):
        return None
    model = json.loads(tokenizer.inner.to_str())["model"]
    if model.get("byte_fallback"):
        return None
    if model["type"] == "Unigram":
        return model.get("unk_id")
    token = model.get("unk_token")
    return tokenizer.inner.token_to_id(token) if token else None


def fertility_table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each tokenizer by its name, and the longest tokens below."""
    heads = ("vocab", "tokens/word", "bytes/token", "round trip", "unknown", "used")
    width = max(map(len, figures), default=0)
    lines = [" ".join([" " * width, *(f"{head:>11}" for head in heads)])]
    for name, one in figures.items():
        ratios = (f"{one[key]:.3f}" if one[key] is not None else "-" for key in ("tokens_per_word", "bytes_per_token"))
        shares = (f"{one[key]:.2%}" if one[key] is not None else "-" for key in ("round_trip", "unknown", "used"))
        lines.append(" ".join([f"{name:{width}}", *(f"{x:>11}" for x in (one["vocab_size"], *ratios, *shares))]))
    lines += [f"longest of {name}: {' '.join(map(repr, one['longest']))}" for name, one in figures.items()]
    return "\n".join(lines)
