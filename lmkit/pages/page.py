"""What every page is made of: style, the frame of a file that needs nothing from outside, cards, tables, bars."""

import base64
import hashlib
from collections.abc import Iterable, Sequence

from lmkit.pages.chart import CHART_STYLE, escape

STYLE = """
:root{color-scheme:light dark;--page:#f7f7f5;--card:#fff;--line:#e2e2de;--text:#222;--soft:#666;--good:#174;--warn:#a50}
@media screen and (prefers-color-scheme:dark){:root{--page:#101215;--card:#181b20;--line:#2c3038;--text:#e6e7ea;
--soft:#9aa0aa;--good:#5dc894;--warn:#f0a75a}}*{box-sizing:border-box}h1,pre,.fact{overflow-wrap:anywhere}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:auto;padding:2rem 1.25rem 3rem}h2{font-size:1.1rem;margin:2rem 0 .75rem}
h1{font-size:1.75rem;line-height:1.2;margin:0}header p{margin:.4rem 0 0}
small,.soft,.note,footer{color:var(--soft)}.note,footer{font-size:.8rem;margin:1.8rem 0 0}
.badge{font-size:.8rem;border:1px solid;border-radius:1rem;padding:.15rem .7rem;vertical-align:middle;color:var(--warn)}
.good{color:var(--good)}.card,figure,.sheet{background:var(--card);border:1px solid var(--line);border-radius:.6rem}
.cards{display:grid;grid-template-columns:repeat(4,1fr);gap:.75rem;margin:1.5rem 0 0}
.card{padding:.7rem .9rem;margin:0}.card dt,.card dd+dd{color:var(--soft);font-size:.78rem}.card dd{margin:0}
.card dt+dd{font-size:1.4rem;font-weight:600;white-space:nowrap}b,td,.card{font-variant-numeric:tabular-nums}
.sheet{padding:.3rem 1rem;overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
tr+tr>*,thead+tbody>tr>*{border-top:1px solid var(--line)}.fact{display:inline-block;margin-right:1.1rem}
th,td{padding:.4rem 1rem .4rem 0;text-align:left;vertical-align:top}th{color:var(--soft);font-weight:400}
.confusion td{text-align:center;padding:.35rem .5rem}
details{margin:.6rem 0}summary{cursor:pointer}mark{background:none;color:var(--c0)}
pre{font:.82rem/1.5 ui-monospace,monospace;white-space:pre-wrap;margin:.6rem 0}
@media(max-width:700px){main{padding:1.25rem .8rem}.cards{grid-template-columns:1fr 1fr}}
@media print{body{background:#fff}main{padding:0;max-width:none}h2{break-after:avoid}figure,tr{break-inside:avoid}}
"""
BARS_STYLE = """
.bar{display:block;height:.7rem;border-radius:.2rem;background:var(--c0);min-width:1px}.bar.out{background:var(--c1)}
.bars td:last-child{width:45%;vertical-align:middle}.columns{display:flex;align-items:flex-end;gap:.4rem;height:200px;
padding-top:1rem}.columns div{flex:1;display:flex;align-items:flex-end;gap:2px;height:100%;position:relative}
.columns i{flex:1;background:var(--c0)}.columns i.was{background:var(--c5);opacity:.5}.names{display:flex;gap:.4rem;
font-size:.72rem;color:var(--soft)}.names span{flex:1;text-align:center}.number{text-align:right}
"""
Row = tuple[str, int, int]  # what, how many, of how many


def html_page(title: str, note: str, parts: Iterable[tuple[str, str]]) -> str:
    """Headings with what stands below them, as one file. Titles and notes are plain text, the rest HTML."""
    body = "\n".join((f"<h2>{title}</h2>\n" if title else "") + html for title, html in parts if html)
    header = f'<header><h1>{escape(title)}</h1>\n<p class="soft">{escape(note)}</p></header>'
    return frame(title, f"{header}\n{body}")


def policy(script: str, *, connect: bool = False) -> str:
    """What a browser may load for a page: nothing from outside, one script, and with `connect` its own server."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"; script-src 'sha256-{digest}'" if script else ""
    own = "; connect-src 'self'" if connect else ""
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}{own}"


def frame(title: str, body: str, *, script: str = "", points: str = "", connect: bool = False) -> str:
    """A whole file, with its style, around the HTML of its body.

    Args:
        script: the one script that the browser may run, should a text ever slip through unescaped.
        points: JSON for it.
        connect: whether it may ask the server that the page came from.
    """
    scripts = f'<script type="application/json" id="points">{points}</script>\n<script>{script}</script>\n'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(script, connect=connect)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}{CHART_STYLE}{BARS_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
{scripts if script else ""}</body>
</html>
"""


def cards(rows: Iterable[tuple[str, str, str]]) -> str:
    """Boxes with a name, a figure and a note."""
    cells = "".join(
        f'<dl class="card"><dt>{name}</dt><dd>{value}</dd><dd>{note}</dd></dl>' for name, value, note in rows
    )
    return f'<div class="cards">{cells}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML already."""
    first = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return (
        f'<div class="sheet"><table class="{kind}"><thead><tr>{first}</tr></thead><tbody>\n{body}</tbody></table></div>'
    )


def bar(part: int, whole: int, kind: str = "") -> str:
    """A bar of `part` in `whole`."""
    return f'<span class="bar {kind}" style="width:{100 * part / max(whole, 1):.2f}%"></span>'


def share(part: int, whole: int) -> str:
    """A share in percent."""
    return f"{part / whole:.2%}" if whole else "–"


def bars(rows: list[Row]) -> str:
    """A bar a row, of the most there are; the share is of the row's own whole."""
    most = max((n for _, n, _ in rows), default=0)
    cells = [(escape(name), f"{n:,}", share(n, whole), bar(n, most, "out")) for name, n, whole in rows]
    return table(("", "Number", "Share", ""), cells, "bars") if rows else ""


def texts(title: str, texts: list[dict[str, str]]) -> str:
    """A fold with the beginnings of texts, each below its id."""
    items = "".join(f'<p class="soft">{escape(t["id"])}</p><pre>{escape(t["text"])}</pre>' for t in texts)
    return f"<details><summary>{escape(title)}</summary>{items}</details>\n"
