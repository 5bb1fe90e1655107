"""A law as a picture: the loss by tokens, a curve a size, and by FLOPs, with the best there is. SVG, light or dark."""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console

from lmkit.plan.scaling.result import Result
from lmkit.plan.scaling.runs import Run
from lmkit.plan.scaling.show import show
from lmkit.train.chart import CHART_STYLE, NUM_COLORS, compact, escape

WIDTH, HEIGHT, LEFT, TOP, GAP = 330, 260, 52, 44, 130  # pixels of a panel and around it
_COLORS = re.findall(r"--c\d:#\w+", CHART_STYLE)  # the report's: first the light ones, then the dark ones
_LIGHT, _DARK = (";".join(_COLORS[n : n + NUM_COLORS]) for n in (0, NUM_COLORS))
_STYLE = f"""<style>
svg{{--bg:#fff;--text:#222;--soft:#666;--line:#e2e2de;{_LIGHT};font:12px system-ui,sans-serif}}
@media(prefers-color-scheme:dark){{svg{{--bg:#181b20;--text:#e6e7ea;--soft:#9aa0aa;--line:#2c3038;{_DARK}}}}}
text{{fill:var(--soft)}}.title{{fill:var(--text);font-weight:600;font-size:13px}}.end{{text-anchor:end}}
.middle{{text-anchor:middle}}path{{fill:none;stroke-width:1.6;stroke-linejoin:round}}.grid{{stroke:var(--line);stroke-width:1}}
.best{{stroke:var(--soft);stroke-dasharray:5 4}}.held{{fill:var(--bg);stroke-width:2}}.bar{{stroke-width:2}}
</style>"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>A scaling law</title>
<style>:root{{color-scheme:light dark}}body{{margin:2rem;font:15px/1.5 system-ui,sans-serif}}
svg{{max-width:100%;height:auto}}pre{{overflow-x:auto;font:13px/1.45 ui-monospace,monospace}}</style></head>
<body>{picture}<pre>{text}</pre></body></html>
"""


class Panel(NamedTuple):
    """A frame with a logarithmic x axis, and a logarithmic y axis whose labels are losses."""

    left: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        right = (math.log(x) - math.log(self.x[0])) / (math.log(self.x[1]) - math.log(self.x[0]))
        up = (math.log(y) - math.log(self.y[0])) / (math.log(self.y[1]) - math.log(self.y[0]))
        return self.left + WIDTH * right, TOP + HEIGHT * (1 - up)

    def frame(self, title: str, name: str) -> str:
        """Title, grid and ticks."""
        bottom = TOP + HEIGHT
        out = [f'<text class="title" x="{self.left}" y="24">{title}</text>']
        for value in marks(*self.y):
            y = self.at(self.x[0], value)[1]
            out.append(f'<path class="grid" d="M{self.left} {y:.1f}h{WIDTH}"/>')
            out.append(f'<text class="end" x="{self.left - 8}" y="{y + 4:.1f}">{value:g}</text>')
        for value in marks(*self.x):
            x = self.at(value, self.y[0])[0]
            out.append(f'<text class="middle" x="{x:.1f}" y="{bottom + 18}">{_tick(value)}</text>')
        out.append(f'<text class="middle" x="{self.left + WIDTH / 2}" y="{bottom + 36}">{name}</text>')
        return "".join(out)

    def line(self, points: Sequence[tuple[float, float]], style: str) -> str:
        """A curve, as far as it is within the frame."""
        inside = [self.at(x, y) for x, y in points if self.x[0] <= x <= self.x[1] and self.y[0] <= y <= self.y[1]]
        return f'<path {style} d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in inside)}"/>' if inside else ""


def marks(low: float, high: float, most: int = 7) -> list[float]:
    """Round values from low to high: powers of ten, with 2 and 5, or finer, as many as there is room for."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ([n / 10 for n in range(10, 100)], [n / 5 for n in range(5, 50)], [n / 2 for n in range(2, 20)],
                  list(range(1, 10)), [1, 2, 5], [1, 3]):  # fmt: skip
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        found = [float(f"{value:.3g}") for value in found if low <= value <= high]
        if len(found) <= most:
            return found
    return [10.0**power for power in range(first, last + 1, -(-(last - first) // most)) if low <= 10.0**power <= high]


def draw_svg(result: Result) -> str:
    """Two panels. A full dot is a run that was fitted, a ring one that was held out, with the 90 % it was told."""
    law, runs = result.fit.law, result.runs
    told = [end for one in result.predictions() for end in (*one.interval, one.loss)]
    losses = [run.loss for run in runs] + told
    y = min(losses) / 1.04, max(losses) * 1.04
    sizes = sorted({result.size(run) for run in runs})
    panels = [
        (Panel(LEFT, _room([run.tokens for run in runs]), y), "Loss (nats a token)", "tokens D", lambda n, d: d),
        (Panel(LEFT + WIDTH + GAP, _room([result.spent(run) for run in runs]), y), "and its best use of FLOPs",
         "6 N D", lambda n, d: 6.0 * n * d),
    ]  # fmt: skip
    out = []
    for panel, title, name, place in panels:
        out.append(panel.frame(title, name))
        if place(2, 1) != 1:
            curve = [(flops, float(law.loss(*law.best(flops)))) for flops in _between(*panel.x)]
            out.append(panel.line(curve, 'class="best"'))
        for number, size in enumerate(sizes):
            curve = [(place(size, tokens), float(law.loss(size, tokens))) for tokens in _between(*panels[0][0].x)]
            out.append(panel.line(curve, f'stroke="{_color(number)}"'))
        out += [_point(result, panel, place, sizes.index(result.size(run)), run) for run in runs]
    for number, size in enumerate(sizes):
        place_of = f'x="{LEFT + WIDTH + 8}" y="{TOP + 12 + 16 * number}"'
        out.append(f'<text {place_of} style="fill:{_color(number)}">N {compact(size, 3)}</text>')
    width, height = 2 * (LEFT + WIDTH) + GAP, TOP + HEIGHT + 50
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="Runs, and the law fitted to them">{_STYLE}'
        f'<rect width="100%" height="100%" rx="8" fill="var(--bg)"/>{"".join(out)}</svg>\n'
    )


def _point(result: Result, panel: Panel, place: Callable[[float, float], float], color: int, run: Run) -> str:
    x, y = panel.at(place(result.size(run), run.tokens), run.loss)
    name = f"<title>{escape(run.name)}: {run.loss:.4f}</title>"
    if run not in result.held_out:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_color(color)}">{name}</circle>'
    low, high = next(one.interval for one in result.predictions() if one.run == run)
    ends = [panel.at(place(result.size(run), run.tokens), end)[1] for end in (low, high)]
    bar = f'<path class="bar" stroke="{_color(color)}" d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}"/>'
    return f'{bar}<circle class="held" stroke="{_color(color)}" cx="{x:.1f}" cy="{y:.1f}" r="5">{name}</circle>'


def draw_page(result: Result) -> str:
    """One HTML page with the picture and the tables, which asks for nothing from outside."""
    console = Console(file=io.StringIO(), record=True, width=170, highlight=False)
    show(console, result)
    return _PAGE.format(picture=draw_svg(result), text=escape(console.export_text()))


def _color(number: int) -> str:
    return f"var(--c{number % NUM_COLORS})"


def _room(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 1.5, max(values) * 1.5


def _between(low: float, high: float, count: int = 60) -> list[float]:
    return [low * (high / low) ** (n / (count - 1)) for n in range(count)]


def _tick(value: float) -> str:
    return compact(value) if value < 1e10 else f"{value:.0e}".replace("e+", "e")
