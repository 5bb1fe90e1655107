"""report.html of a benchmark: bars of every row and a roofline, in one file that asks for nothing from outside."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmkit.files import write_text
from lmkit.pages.chart import CHART_STYLE, NUM_COLORS, compact, escape, exact
from lmkit.pages.page import STYLE
from speed.goals import short
from speed.tables import HEAD, cells

Record = dict[str, Any]
BARS = (  # what a chart shows: key, title, unit
    ("tokens_per_sec", "Throughput", "tokens/s"), ("cpu_s", "CPU seconds", "a step"),
    ("mfu", "Matrix products", "share of the measured rate"), ("to_first_step_s", "Time to first step", "s"),
    ("warm_first_step_s", "Time to first step, warm cache", "s"), ("peak_rss_mb", "Peak memory", "MiB, process"),
    ("device_peak_mb", "Peak memory", "MiB, device"),
)  # fmt: skip
WIDTH, HEIGHT, LEFT, TOP = 1040, 360, 60, 20  # of the roofline, in pixels
MORE_STYLE = """
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:.3rem .8rem;
align-items:center;font-size:.85rem}
.bar{height:.9rem;border-radius:.2rem;background:var(--c);min-width:2px}.range{color:var(--soft)}
.roof text{fill:var(--soft);font-size:12px}.roof path{stroke:var(--text)}.roof .grid{stroke:var(--line)}
.roof circle{fill:var(--c)}.roof .under{stroke-dasharray:3 4;stroke:var(--soft);stroke-width:1}
.roof svg{height:auto;overflow:visible}
"""


def write_page(path: Path, rows: Sequence[Record]) -> Path:
    """Writes the page of these records, which are those of one run or of several."""
    write_text(path, page(rows))
    return path


def page(rows: Sequence[Record]) -> str:
    """The whole page."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for row in rows:
        where = short(row["machine"]) if row.get("platform", "cpu") == "cpu" else row.get("device") or "gpu"
        key = (row["config"], row["dtype"], f"{row['threads'] or 'all'} CPUs", where)
        key = ("sweep", row["sweep"], *key[2:]) if row.get("sweep") else key
        groups.setdefault(key, []).append(row)
    parts = [section(", ".join(key), group) for key, group in groups.items()]
    told = ", ".join(sorted({f"{row['when']} on {row['machine']}" for row in rows}))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>lmkit benchmarks</title><style>{STYLE}{CHART_STYLE}{MORE_STYLE}</style></head>
<body><main><header><h1>Benchmarks</h1><p class="soft">{escape(told)}</p></header>
{"".join(parts)}
<footer>Bars are medians; the range is from the slowest to the fastest turn. The roofs are a matrix product and a copy
measured in the same run; FLOPs and bytes of a step are computed by tools/speed/floors.py.</footer></main></body></html>
"""


def section(title: str, rows: Sequence[Record]) -> str:
    """The charts and the table of rows that can be compared."""
    good = [row for row in rows if "error" not in row]
    charts = [bars(name, unit, key, good) for key, name, unit in BARS if any(row.get(key) is not None for row in good)]
    roof = roofline(good)
    table = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(row))}</tr>" for row in rows
    )  # fmt: skip
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    return (
        f'<h2>{escape(title)}</h2><div class="charts">{"".join(charts)}</div>{roof}'
        f'<div class="sheet"><table><thead><tr>{head}</tr></thead><tbody>{table}</tbody></table></div>'
    )


def bars(title: str, unit: str, key: str, rows: Sequence[Record]) -> str:
    """One figure of every row, as long as it is large."""
    values = [row.get(key) for row in rows]
    most = max((value for value in values if value is not None), default=0.0) or 1.0
    lines = []
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        low, high = row.get(f"{key}_min"), row.get(f"{key}_max")
        span = f' <span class="range">{exact(low)}-{exact(high)}</span>' if low is not None and high is not None else ""
        width = 0 if value is None else 100 * value / most
        bar = f'<div class="bar c{number % NUM_COLORS}" style="width:{width:.1f}%"></div>'
        said = "not measured" if value is None else f"{value:.0%}" if key == "mfu" else exact(value)
        lines.append(f"<span>{escape(row['name'])}</span>{bar}<span><b>{said}</b>{span}</span>")
    caption = f"<figcaption><strong>{escape(title)}</strong> <small>{escape(unit)}</small></figcaption>"
    return f'<figure>{caption}<div class="bars">{"".join(lines)}</div></figure>'


def roofline(rows: Sequence[Record]) -> str:
    """FLOPs a byte against FLOP/s, under the two roofs of the run (Williams et al. 2009); '' where none is known."""
    points = [
        (row["flops_per_step"] / row["bytes_per_step"], row["mfu"] * row["matmul_flops"], row["name"])
        for row in rows
        if row.get("mfu")
    ]
    if not points:
        return ""
    peak = max(row["matmul_flops"] for row in rows if row.get("mfu"))
    copy = max(row["copy_bytes"] for row in rows if row.get("mfu"))
    low, high = min(1.0, *(x for x, _, _ in points)), 10 * max(peak / copy, *(x for x, _, _ in points))
    bottom, top = min(low * copy, *(y for _, y, _ in points)) / 2, 2 * peak

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / low) / math.log(high / low)
        up = math.log(y / bottom) / math.log(top / bottom)
        return LEFT + (WIDTH - LEFT) * across, TOP + (HEIGHT - TOP) * (1 - up)

    corner, out = peak / copy, []
    for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        x, _ = at(10.0**power, top)
        out.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT}"/>')
        out.append(f'<text text-anchor="middle" x="{x:.1f}" y="{HEIGHT + 18}">{compact(10.0**power)}</text>')
    for power in range(math.ceil(math.log10(bottom)), math.floor(math.log10(top)) + 1):
        _, y = at(low, 10.0**power)
        out.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH}"/>')
        out.append(f'<text text-anchor="end" x="{LEFT - 8}" y="{y + 4:.1f}">{compact(10.0**power)}</text>')
    roof = [at(low, low * copy), at(corner, peak), at(high, peak)]
    out.append(f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in roof)}"/>')
    free = 0.0  # where the next label has room: from the top down, a line each
    for number, (x, y, name) in sorted(enumerate(points), key=lambda one: -one[1][1]):
        (across, down), (_, limit) = at(x, y), at(x, min(peak, x * copy))
        told = max(down + 4, free)
        free = told + 14
        out.append(f'<path class="under" d="M{across:.1f} {down:.1f}V{limit:.1f}"/>')
        out.append(f'<circle class="c{number % NUM_COLORS}" cx="{across:.1f}" cy="{down:.1f}" r="5"/>')
        out.append(f'<path class="under" d="M{across:.1f} {down:.1f}L{across + 14:.1f} {told - 4:.1f}"/>')
        out.append(f'<text x="{across + 17:.1f}" y="{told:.1f}">{escape(name)}</text>')
    said = f"{peak / 1e9:,.0f} GFLOP/s and {copy / 1e9:,.1f} GB/s measured, FLOPs a byte against FLOP/s"
    return (
        f'<figure class="roof"><figcaption><strong>Roofline</strong> <small>{escape(said)}</small></figcaption>'
        f'<svg role="img" aria-label="Roofline" viewBox="0 0 {WIDTH} {HEIGHT + 30}">{"".join(out)}</svg></figure>'
    )
