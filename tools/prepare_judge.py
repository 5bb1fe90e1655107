"""What became of what prepare_plant.py planted, and whether anything was removed that is like nothing that stays.

The truth about duplicates is computed here, by exact Jaccard indices of word 5-grams, with nothing of what cleans.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def shingles(text: str) -> set[int]:
    """Hashes of the runs of five words."""
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + 5])) for i in range(len(words) - 4)}


def alike(a: set[int], b: set[int]) -> float:
    """Jaccard's index."""
    return len(a & b) / max(len(a | b), 1)


def _rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(paths) for line in path.read_text().split("\n") if line]


def judge(out: Path, truth: dict[str, Any], threshold: float) -> dict[str, Any]:
    """What became of what was planted, and which removals were wrong: like no document that stays."""
    name_of = truth["name_of"]
    docs = {name_of[row["id"]]: row["text"] for row in _rows((out / "docs").glob("*.jsonl"))}
    dropped = (out / "dropped").iterdir()
    gone = {step.name: {name_of[r["id"]]: r["text"] for r in _rows(step.glob("*"))} for step in dropped}
    filtered = {name for step, rows in gone.items() if step not in ("exact", "near") for name in rows}
    result: dict[str, Any] = {"documents": len(name_of), "kept": len(docs), "filtered": len(filtered)}
    for kind in ("exact", "near"):
        pairs = [pair for pair in truth[kind].items() if not filtered & set(pair)]
        left = [alike(shingles(docs[a]), shingles(docs[b])) for a, b in pairs if a in docs and b in docs]
        result[kind] = (len(pairs) - len(left), len(pairs) - sum(share < threshold for share in left))
        if unlike := sum(share < threshold for share in left):  # c4 takes lines out
            result[f"{kind}, made unlike by rules"] = unlike
    everything = "\n".join(path.read_text() for path in sorted(out.rglob("*.jsonl")))
    for kind in ("email", "ip", "phone"):
        planted = [value for value, other in truth["pii"].items() if other == kind]
        result[kind] = (sum(json.dumps(value)[1:-1] not in everything for value in planted), len(planted))
    places = {row["place"].rpartition("/")[2] for row in _rows([out / "quarantine.jsonl"])}
    result["broken"] = (len(places & set(truth["broken"])), len(truth["broken"]))
    result["reported but not broken"] = len(places - set(truth["broken"]))
    still = [name for name, passage in truth["contaminated"].items() if _share_run(docs.get(name, ""), passage)]
    result["contaminated"] = (len(truth["contaminated"]) - len(still), len(truth["contaminated"]))
    planted = set(truth["exact"]) | set(truth["near"])
    removed = {n: t for step in ("exact", "near") for n, t in gone.get(step, {}).items() if n not in planted}
    best = _best(removed, docs)
    unplanted = set(name_of.values()) - filtered - planted
    single = len([name for name in unplanted if best.get(name, 0.0) < threshold])
    result["removed, not planted"] = len(removed)
    result["wrongly removed"] = (sum(best[name] < threshold for name in removed), single)
    result["least alike"] = sorted((round(best[name], 3), name) for name in removed)[:5]
    return result


def _share_run(text: str, passage: str, words: int = 13) -> bool:
    """Whether a run of so many words of a passage is in a text."""
    parts, found = re.findall(r"\w+", passage), re.findall(r"\w+", text)
    runs = {tuple(found[i : i + words]) for i in range(len(found) - words + 1)}
    return any(tuple(parts[i : i + words]) in runs for i in range(len(parts) - words + 1))


def _best(removed: dict[str, str], docs: dict[str, str]) -> dict[str, float]:
    """Jaccard's index of each removed text with the most alike one that stays; 1 for an equal one."""
    sets = {name: shingles(text) for name, text in removed.items()}
    holders: dict[int, list[str]] = {}
    for name, found in sets.items():
        for shingle in found:
            holders.setdefault(shingle, []).append(name)
    equal = set(docs.values())
    best = {name: float(text in equal) for name, text in removed.items()}
    for text in docs.values():
        kept = shingles(text)
        for name, shared in Counter(n for shingle in kept for n in holders.get(shingle, ())).items():
            best[name] = max(best[name], shared / (len(kept) + len(sets[name]) - shared))
    return best
