"""What was done to a corpus, as numbers and samples: card.json, written last of all, and the page made from it."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.config.sections.clean import CleanConfig, Pii
from lmkit.files import write_json, write_text
from lmkit.pages.corpus import page
from lmkit.prepare.clean.exact import COPY
from lmkit.prepare.clean.near import minhash_config
from lmkit.prepare.clean.steps import Texts, rows_of

# (label of a step, what it counted), in the order of the work
Counts = list[tuple[str, dict[str, int]]]

_SAMPLES, _SAMPLE_CHARS, _LOOK_ROWS = 3, 600, 200  # of a reason; of a text; of a file of dropped ones
_CLUSTERS, _BAD = 6, 50


def write_card(
    out: Path, work: Path, settings: CleanConfig, texts: Texts, counts: Counts, evaluation: dict[str, int],
    owners: Sequence[str] = (),
) -> None:  # fmt: skip
    """Writes out/report.html, then out/card.json. `owners`: the part of each file of texts that is not this one's."""
    by_label = dict(counts)
    steps = [_step(label, found) for label, found in counts if label not in ("read", "source", "kept", "pii")]
    pii = by_label.get("pii", {})
    bad = list(itertools.islice(rows_of(out / "quarantine.jsonl"), _BAD))
    card = json.loads((work / "made_from.json").read_text()) | {
        "documents": {side: by_label[side].get("documents", 0) for side in ("source", "kept")},
        "bytes": {side: by_label[side].get("bytes", 0) for side in ("source", "kept")},
        "steps": steps,
        "pii": {kind.name: pii.get(kind.name, 0) for kind in Pii if kind in settings.pii},
        "quarantine": {"records": by_label["read"].get("bad", 0), "first": bad},
        "lengths": {side: _lengths(by_label[side]) for side in ("source", "kept")},
        "clusters": _clusters(work, settings, texts, owners),
        "samples": _samples(out / "dropped"),
        "evaluation_texts": evaluation,
    }
    if settings.near:
        config = minhash_config(settings)
        card["minhash"] = {"buckets": config.num_buckets, "rows": config.hashes_per_bucket, "words": config.n_grams}
    if owners:
        kinds = card["clusters"].values()
        card["copies"] = {name: sum(one["of_earlier"][name] for one in kinds) for name in dict.fromkeys(owners)}
    _write(out, card)


def add_tokens(out: Path, tokens: int) -> None:
    """Puts the number of tokens that a tokenizer made of the corpus into the card and its page, where they are ours."""
    if os.access(out, os.W_OK):
        _write(out, json.loads((out / "card.json").read_text(encoding="utf-8")) | {"tokens": tokens})


def _write(out: Path, card: dict[str, Any]) -> None:
    write_text(out / "report.html", page(card))
    write_json(out / "card.json", card)


def _step(label: str, counts: dict[str, int]) -> dict[str, Any]:
    """Documents in, out, and dropped by reason."""
    reasons = {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_")}
    reasons = reasons or ({f"{label} duplicate": counts["dropped"]} if counts.get("dropped") else {})
    return {
        "step": label, "in": counts.get("total", 0), "out": counts.get("forwarded", 0),
        "dropped": dict(sorted(reasons.items(), key=lambda row: (-row[1], row[0]))),
    }  # fmt: skip


def _lengths(counts: dict[str, int]) -> dict[str, int]:
    """Documents by the power of two that their characters stay below."""
    found = {int(name.removeprefix("length_")): n for name, n in counts.items() if name.startswith("length_")}
    return {str(2**power): found[power] for power in sorted(found)}


def _samples(dropped: Path) -> dict[str, list[dict[str, str]]]:
    """step: reason -> the first few texts, from the beginning of each file."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted(dropped.glob("*/*.jsonl")):
        for row in itertools.islice(rows_of(path), _LOOK_ROWS):
            texts = found.setdefault(f"{path.parent.name}: {row['reason'] or 'like one that stays'}", [])
            if len(texts) < _SAMPLES:
                texts.append({"id": row["id"], "text": row["text"][:_SAMPLE_CHARS]})
    return dict(sorted(found.items()))


def _clusters(work: Path, settings: CleanConfig, texts: Texts, owners: Sequence[str]) -> dict[str, Any]:
    """Sizes of groups of equal or like documents, a few of the largest, and of how many an earlier part has the first.

    `texts`: as they were before copies were taken out.
    """
    found = {}
    if settings.exact:
        parts = [np.load(path) for path in sorted((work / "copies").glob("*.npy"))]
        copies = np.concatenate([np.empty(0, COPY), *parts])
        firsts = Counter(zip(copies["first_file"].tolist(), copies["first_line"].tolist(), strict=True))
        largest = sorted(firsts.items(), key=lambda row: (-row[1], row[0]))[:_CLUSTERS]
        sizes = sorted(Counter(n + 1 for n in firsts.values()).items())
        others = Counter(owners[file - texts.tasks] for file in copies["first_file"].tolist() if file >= texts.tasks)
        shown = _texts(texts, [[n + 1, [list(at)]] for at, n in largest])
        found["exact"] = {"sizes": sizes, "largest": shown, "of_earlier": others}
    if settings.near:
        near = json.loads((work / "near" / "clusters.json").read_text())
        unique = texts._replace(folder=work / "unique") if settings.exact else texts
        shown = _texts(unique, near["samples"][:_CLUSTERS])
        found["near"] = {"sizes": near["sizes"], "largest": shown, "of_earlier": near["of_earlier"]}
    for one in found.values():
        one["of_earlier"] = {name: one["of_earlier"].get(name, 0) for name in dict.fromkeys(owners)}
    return found


def _texts(files: Texts, clusters: list) -> list[dict[str, Any]]:
    """[size, [(file, line), ...]] with the names and beginnings of those documents."""
    wanted = {tuple(at) for _, members in clusters for at in members}
    texts = {}
    for file in sorted({file for file, _ in wanted}):
        last = max(line for other, line in wanted if other == file)
        for line, row in enumerate(itertools.islice(rows_of(files.path(file)), last + 1)):
            if (file, line) in wanted:
                texts[file, line] = {"id": row["id"], "text": row["text"][:_SAMPLE_CHARS]}
    return [{"size": size, "documents": [texts[tuple(at)] for at in members]} for size, members in clusters]
