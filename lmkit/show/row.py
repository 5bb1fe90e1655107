"""A row of a batch in words: where it comes from, its documents, and what each token weighs."""

from typing import Any

import numpy as np

from lmkit.data.batches.fields import Batch
from lmkit.data.batches.records import Records
from lmkit.data.batches.windows import Batches, Origin, Windows
from lmkit.data.store.tokens import TRAIN, TokenStore
from lmkit.data.tokens.tokenizer import Tokenizer

_TOKENS = {"inputs": "segment_ids", "targets": "segment_ids", "source": "source_segment_ids"}  # and what is padding
_PLUMBING = ("weights", "masked_positions", "segment_ids", "source_segment_ids")


def describe(
    batches: Batches, tokenizer: Tokenizer | None, labels: list[str], step: int, row: int, batch_size: int
) -> dict[str, Any]:
    """A row of the global batch of a step, ready for JSON; ranges are [first, beyond the last].

    Documents have their text as it is; `weights` are runs of [tokens, weight in the loss], null for a first token that
    is read and not predicted, and `texts` the text of each run.
    """
    origin = batches.origin(step * batch_size + row)
    batch = {name: array[0] for name, array in batches.train(step, batch_size, np.array([row])).items()}
    found: dict[str, Any] = {"step": step, "row": row, "batch_size": batch_size}
    found |= {name: getattr(origin, name) for name in ("part", "epoch", "index", "count")}
    plain = isinstance(batches, Windows) and not (batches.masker or batches.cutter)
    if isinstance(batches, Windows):
        assert tokenizer is not None
        found["pieces"] = _pieces(batches.stores[origin.part], origin, tokenizer, batch if plain else None)
    if plain:
        first, length = found["pieces"][-1]["positions"][1], len(batch["inputs"])
        assert not batch["weights"][first:].any(), "padding weighs nothing"
        found["padding"] = [first, length]
    else:
        # windows count their segments from 0, and have no padding
        padded = not isinstance(batches, Windows) or batches.pairer is not None
        found["fields"] = _fields(batch, tokenizer, labels, padded)
        found |= {"record": origin.index} if isinstance(batches, Records) else {}
    return found


def _pieces(store: TokenStore, origin: Origin, tokenizer: Tokenizer, batch: Batch | None) -> list[dict[str, Any]]:
    ends, pieces, at = store.document_ends(TRAIN), [], 0
    for start, count in origin.pieces:
        (tokens,) = store.windows(TRAIN, [start], count)
        piece: dict[str, Any] = {"tokens": [start, start + count]}
        weights = None
        if batch is not None:
            place = slice(at, at + count - 1)
            assert np.array_equal(batch["inputs"][place], tokens[:-1]), "the row is not what its origin says"
            assert np.array_equal(batch["targets"][place], tokens[1:]), "the row is not what its origin says"
            piece["positions"], at = [place.start, place.stop], place.stop
            weights = np.concatenate([[np.nan], batch["weights"][place]])
        piece["documents"] = _documents(store, ends, start, tokens, weights, tokenizer)
        pieces.append(piece)
    return pieces


def _documents(
    store: TokenStore,
    ends: np.ndarray,
    start: int,
    tokens: np.ndarray,
    weights: np.ndarray | None,
    tokenizer: Tokenizer,
) -> list[dict[str, Any]]:
    """The documents of a stretch of tokens, each as far as it lies in it."""
    found, stop = [], start + len(tokens)
    for number in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
        begin, end = int(ends[number - 1]) + 1 if number else 1, int(ends[number])
        if begin >= stop:
            break
        first, last = max(begin, start), min(end, stop)
        here = slice(first - start, last - start)
        one = {
            "number": number,
            "name": store.document_name(TRAIN, number),
            "tokens": [first - begin, last - begin],
            "length": end - begin,
            "ended": end < stop,  # its end token is in the row, too
            "text": tokenizer.decode(tokens[here].tolist()),
        }
        if weights is not None:
            runs = _runs(weights[first - start : min(end + 1, stop) - start])
            one["weights"] = [[stop - start, weight] for start, stop, weight in runs]
            one["texts"] = [tokenizer.decode(tokens[here][start:stop].tolist()) for start, stop, _ in runs]
        found.append(one)
    return found


def _runs(weights: np.ndarray) -> list[tuple[int, int, float | None]]:
    """(first, beyond the last, weight) of each stretch of equal weights; None for NaN."""
    same = (weights[1:] == weights[:-1]) | (np.isnan(weights[1:]) & np.isnan(weights[:-1]))
    edges = [0, *(np.flatnonzero(~same) + 1).tolist(), len(weights)]
    values = [None if np.isnan(weights[first]) else float(weights[first]) for first in edges[:-1]]
    return list(zip(edges[:-1], edges[1:], values, strict=True))


def _fields(batch: Batch, tokenizer: Tokenizer | None, labels: list[str], padded: bool) -> dict[str, Any]:
    """The arrays of a row that is not simply a text: tokens as text, with what each stretch weighs; others by shape."""
    found: dict[str, Any] = {}
    for name, array in batch.items():
        if name in _PLUMBING:
            continue
        if name == "targets" and "masked_positions" in batch:
            assert tokenizer is not None
            rows = zip(batch["masked_positions"].tolist(), array.tolist(), batch["weights"].tolist(), strict=True)
            found[name] = [[place, spelt(tokenizer, [token]), weight] for place, token, weight in rows]
        elif name in _TOKENS and array.ndim == 1 and array.dtype.kind == "i" and tokenizer is not None:
            inside = batch.get(_TOKENS[name]) if padded else None
            length = int(np.count_nonzero(inside)) if inside is not None and inside.shape == array.shape else len(array)
            weights = batch.get("weights")
            if name == "targets" and weights is not None and weights.shape == array.shape:
                runs = _runs(weights[:length])
                found[name] = [[spelt(tokenizer, array[a:b].tolist()), weight] for a, b, weight in runs]
            else:
                found[name] = spelt(tokenizer, array[:length].tolist())
        elif array.ndim == 0:
            value = array.item()
            classes = name in ("labels", "other_labels") and 0 <= value < len(labels)
            found[name] = f"{value} ({labels[value]})" if classes else str(value)
        else:
            found[name] = f"{array.dtype} {list(array.shape)} from {array.min():.4g} to {array.max():.4g}"
    return found


def spelt(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text with special tokens by their names: [end] [start] [mask] [0] [1] ..."""
    names: dict[int | None, str] = {one: f"[{n}]" for n, one in enumerate(tokenizer.sentinel_ids)}
    names |= {tokenizer.mask_id: "[mask]", tokenizer.start_id: "[start]", tokenizer.end_id: "[end]"}
    out, plain = [], []
    for one in ids:
        if one in names:
            out += [tokenizer.decode(plain), names[one]]
            plain = []
        else:
            plain.append(one)
    return "".join([*out, tokenizer.decode(plain)])


def told(found: dict[str, Any]) -> str:
    """The same to be read: texts behind bars, line by line."""
    lines = [
        f"step {found['step']}, row {found['row']} of {found['batch_size']}, run.seed={found['seed']}: part "
        f"{found['part']!r}, epoch {found['epoch']}, number {found['index']:,} of its {found['count']:,} "
        f"{'records' if 'record' in found else 'rows'}"
    ]
    pieces = found.get("pieces", [])
    for number, piece in enumerate(pieces, 1):
        positions = f", positions {_span(piece['positions'])}" if "positions" in piece else ""
        lines.append(
            f"piece {number} of {len(pieces)}: tokens {_span(piece['tokens'])} of the training split{positions}"
        )
        for one in piece["documents"]:
            lines += _told_document(one)
    if "padding" in found and found["padding"][0] < found["padding"][1]:
        lines.append(f"padding: positions {_span(found['padding'])}, weight 0")
    for name, value in found.get("fields", {}).items():
        lines += _told_field(name, value)
    return "\n".join(lines)


def _span(span: list[int]) -> str:
    return f"{span[0]:,} to {span[1] - 1:,}"


def _told_document(one: dict[str, Any]) -> list[str]:
    span = f"tokens {_span(one['tokens'])} of {one['length']:,}" if one["tokens"][1] > one["tokens"][0] else "no tokens"
    head = f"document {one['number']:,} {one['name']!r}: {span}{', and its end' if one['ended'] else ''}"
    predicted = {weight for _, weight in one.get("weights", []) if weight is not None}
    if len(predicted) <= 1:
        weight = f", weight {predicted.pop():g}" if predicted else ""
        return [f"{head}{weight}", *_barred(one["text"])]
    lines = [head]
    for text, (count, weight) in zip(one["texts"], one["weights"], strict=True):
        what = "read, not predicted" if weight is None else f"weight {weight:g}"
        lines += [f"  {count:,} tokens, {what}", *_barred(text)]
    return lines


def _told_field(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [f"{name}:", *_barred(value)]
    if value and len(value[0]) == 3:
        return [f"{name}:", *(f"  place {place}, weight {weight:g}: {text!r}" for place, text, weight in value)]
    lines = [f"{name}:"]
    for text, weight in value:
        lines += [f"  weight {weight:g}", *_barred(text)]
    return lines


def _barred(text: str) -> list[str]:
    return [f"  | {line}" for line in text.split("\n")]
