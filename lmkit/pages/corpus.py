"""The page of a cleaned corpus: one file without a script, made from card.json alone."""

import json
from typing import Any

from lmkit.console import size
from lmkit.pages.chart import compact, escape, exact
from lmkit.pages.page import Row, bar, bars, cards, html_page, share, table, texts


def page(card: dict[str, Any]) -> str:
    """The card as HTML. Every text of the corpus is escaped."""
    kept, source = card["documents"]["kept"], card["documents"]["source"]
    parts = [
        ("", _cards(card)),
        ("What became of the documents", _funnel(card["steps"], source)),
        ("Dropped, by reason", bars(_reasons(card["steps"], source))),
        ("Lengths", _lengths(card["lengths"])),
        ("Duplicates", "".join(_duplicates(kind, found) for kind, found in card["clusters"].items())),
        ("Replaced", bars([(kind, n, max(card["pii"].values())) for kind, n in card["pii"].items()])),
        ("Quarantine", _quarantine(card["quarantine"])),
        ("Samples of what was dropped", "".join(texts(why, some) for why, some in card["samples"].items())),
        ("Settings", _settings(card)),
    ]
    return html_page("A cleaned corpus", f"{kept:,} of {source:,} documents stay", parts)


def _cards(card: dict[str, Any]) -> str:
    documents, num_bytes = card["documents"], card["bytes"]
    rows = [
        ("Documents", compact(documents["kept"], 3), f"{share(documents['kept'], documents['source'])} of those read"),
        (
            "Text",
            size(num_bytes["kept"]),
            f"{share(num_bytes['kept'], num_bytes['source'])} of {size(num_bytes['source'])}",
        ),
        ("Unreadable records", f"{card['quarantine']['records']:,}", "in quarantine.jsonl"),
    ]
    if "tokens" in card:
        rows.insert(
            2, ("Tokens", compact(card["tokens"], 3), f"{exact(num_bytes['kept'] / max(card['tokens'], 1))} bytes each")
        )
    if card["pii"]:
        rows.append(("Addresses replaced", f"{sum(card['pii'].values()):,}", ", ".join(card["pii"])))
    return cards(rows)


def _funnel(steps: list[dict[str, Any]], source: int) -> str:
    rows = [
        (escape(s["step"]), f"{s['in']:,}", f"{sum(s['dropped'].values()):,}", f"{s['out']:,}", bar(s["out"], source))
        for s in steps
    ]
    return table(("Step", "In", "Dropped", "Out", "Of what was read"), rows, "bars")


def _reasons(steps: list[dict[str, Any]], source: int) -> list[Row]:
    rows = [(step["step"], reason, n) for step in steps for reason, n in step["dropped"].items()]
    return [(reason if reason.startswith(step) else f"{step}: {reason}", n, source) for step, reason, n in rows]


def _lengths(lengths: dict[str, dict[str, int]]) -> str:
    """Pairs of columns: read (grey) and kept, by powers of two of characters."""
    powers = sorted({int(power) for side in lengths.values() for power in side})
    if not powers:
        return ""
    places, most = [], max(n for side in lengths.values() for n in side.values())
    power = powers[0]
    while power <= powers[-1]:
        places.append(power)
        power = max(2 * power, 1)
    columns, names = "", ""
    for place in places:
        was, now = (lengths[side].get(str(place), 0) for side in ("source", "kept"))
        title = f"below {place:,} characters: {was:,} read, {now:,} kept"
        columns += (
            f'<div title="{title}"><i class="was" style="height:{100 * was / most:.1f}%"></i>'
            f'<i style="height:{100 * now / most:.1f}%"></i></div>'
        )
        names += f"<span>&lt; {compact(place, 3)}</span>"
    note = '<p class="note">Documents by characters, as they were read (grey) and as they are kept.</p>'
    return f'<div class="sheet"><div class="columns">{columns}</div><div class="names">{names}</div>{note}</div>'


def _duplicates(kind: str, found: dict[str, Any]) -> str:
    """Sizes of clusters, and the largest of them."""
    if not found["sizes"]:
        return f'<p class="soft">{escape(kind)}: none</p>'
    most = max(n for _, n in found["sizes"])
    rows = [(f"{members:,}", f"{n:,}", bar(n, most)) for members, n in found["sizes"]]
    sizes = table((f"{escape(kind)}: documents of a cluster", "Clusters", ""), rows, "bars")
    held = ", ".join(f"{escape(repr(part))} {n:,}" for part, n in found.get("of_earlier", {}).items() if n)
    note = f'<p class="note">Documents that earlier parts of the mixture hold, too: {held}.</p>' if held else ""
    shown = "".join(texts(f"{kind}: one of {c['size']:,}", c["documents"]) for c in found["largest"])
    return sizes + note + shown


def _quarantine(quarantine: dict[str, Any]) -> str:
    if not quarantine["records"]:
        return '<p class="soft">Every record could be read.</p>'
    rows = [
        (escape(bad["place"]), escape(bad["reason"]), f"<pre>{escape(bad['sample'])}</pre>")
        for bad in quarantine["first"]
    ]
    more = quarantine["records"] - len(rows)
    note = f'<p class="note">{more:,} more in quarantine.jsonl.</p>' if more else ""
    return table(("Where", "Why", "How it begins"), rows) + note


def _settings(card: dict[str, Any]) -> str:
    names = ("data.clean", "minhash", "evaluation_texts", "tasks", "source", "evaluation", "earlier")
    shown = {name: card[name] for name in names if card.get(name)}
    return f"<pre>{escape(json.dumps(shown, indent=1, ensure_ascii=False))}</pre>"
