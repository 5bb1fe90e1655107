"""The page of a cleaned corpus: one file without a script, made from card.json alone."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lmkit.train.chart import CHART_STYLE, compact, escape, exact
from lmkit.train.style import STYLE

_BARS = """
.bar{display:block;height:.7rem;border-radius:.2rem;background:var(--c0);min-width:1px}.bar.out{background:var(--c1)}
.bars td:last-child{width:45%;vertical-align:middle}.columns{display:flex;align-items:flex-end;gap:.4rem;height:200px;
padding-top:1rem}.columns div{flex:1;display:flex;align-items:flex-end;gap:2px;height:100%;position:relative}
.columns i{flex:1;background:var(--c0)}.columns i.was{background:var(--c5);opacity:.5}.names{display:flex;gap:.4rem;
font-size:.72rem;color:var(--soft)}.names span{flex:1;text-align:center}.number{text-align:right}
"""
Row = tuple[str, int, int]  # what, how many, of how many


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


def html_page(title: str, note: str, parts: Iterable[tuple[str, str]]) -> str:
    """Headings with what stands below them, as one file. Titles and notes are plain text, the rest HTML."""
    body = "\n".join((f"<h2>{title}</h2>\n" if title else "") + html for title, html in parts if html)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}{CHART_STYLE}{_BARS}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1>
<p class="soft">{escape(note)}</p></header>
{body}
</main>
</body>
</html>
"""


def size_of(count: float) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"{exact(count / size)} {unit}"
    return f"{count:,} B"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "–"


def _cards(card: dict[str, Any]) -> str:
    documents, size = card["documents"], card["bytes"]
    rows = [
        ("Documents", compact(documents["kept"], 3), f"{_share(documents['kept'], documents['source'])} of those read"),
        ("Text", size_of(size["kept"]), f"{_share(size['kept'], size['source'])} of {size_of(size['source'])}"),
        ("Unreadable records", f"{card['quarantine']['records']:,}", "in quarantine.jsonl"),
    ]
    if "tokens" in card:
        rows.insert(
            2, ("Tokens", compact(card["tokens"], 3), f"{exact(size['kept'] / max(card['tokens'], 1))} bytes each")
        )
    if card["pii"]:
        rows.append(("Addresses replaced", f"{sum(card['pii'].values()):,}", ", ".join(card["pii"])))
    return cards(rows)


def cards(rows: Iterable[tuple[str, str, str]]) -> str:
    """Boxes with a name, a figure and a note."""
    cells = "".join(
        f'<dl class="card"><dt>{name}</dt><dd>{value}</dd><dd>{note}</dd></dl>' for name, value, note in rows
    )
    return f'<div class="cards">{cells}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML already."""
    first = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return (
        f'<div class="sheet"><table class="{kind}"><thead><tr>{first}</tr></thead><tbody>\n{body}</tbody></table></div>'
    )


def _bar(part: int, whole: int, kind: str = "") -> str:
    return f'<span class="bar {kind}" style="width:{100 * part / max(whole, 1):.2f}%"></span>'


def _funnel(steps: list[dict[str, Any]], source: int) -> str:
    rows = [
        (escape(s["step"]), f"{s['in']:,}", f"{sum(s['dropped'].values()):,}", f"{s['out']:,}", _bar(s["out"], source))
        for s in steps
    ]
    return _table(("Step", "In", "Dropped", "Out", "Of what was read"), rows, "bars")


def _reasons(steps: list[dict[str, Any]], source: int) -> list[Row]:
    rows = [(step["step"], reason, n) for step in steps for reason, n in step["dropped"].items()]
    return [(reason if reason.startswith(step) else f"{step}: {reason}", n, source) for step, reason, n in rows]


def bars(rows: list[Row]) -> str:
    """A bar a row, of the most there are; the share is of the row's own whole."""
    most = max((n for _, n, _ in rows), default=0)
    cells = [(escape(name), f"{n:,}", _share(n, whole), _bar(n, most, "out")) for name, n, whole in rows]
    return _table(("", "Number", "Share", ""), cells, "bars") if rows else ""


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
    rows = [(f"{size:,}", f"{n:,}", _bar(n, most)) for size, n in found["sizes"]]
    table = _table((f"{escape(kind)}: documents of a cluster", "Clusters", ""), rows, "bars")
    return table + "".join(texts(f"{kind}: one of {c['size']:,}", c["documents"]) for c in found["largest"])


def texts(title: str, texts: list[dict[str, str]]) -> str:
    items = "".join(f'<p class="soft">{escape(t["id"])}</p><pre>{escape(t["text"])}</pre>' for t in texts)
    return f"<details><summary>{escape(title)}</summary>{items}</details>\n"


def _quarantine(quarantine: dict[str, Any]) -> str:
    if not quarantine["records"]:
        return '<p class="soft">Every record could be read.</p>'
    rows = [
        (escape(bad["place"]), escape(bad["reason"]), f"<pre>{escape(bad['sample'])}</pre>")
        for bad in quarantine["first"]
    ]
    more = quarantine["records"] - len(rows)
    note = f'<p class="note">{more:,} more in quarantine.jsonl.</p>' if more else ""
    return _table(("Where", "Why", "How it begins"), rows) + note


def _settings(card: dict[str, Any]) -> str:
    names = ("data.clean", "minhash", "evaluation_texts", "tasks", "source", "evaluation")
    shown = {name: card[name] for name in names if card.get(name)}
    return f"<pre>{escape(json.dumps(shown, indent=1, ensure_ascii=False))}</pre>"
