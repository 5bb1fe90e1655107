"""A law as a picture: the loss by tokens, a curve a size, and by FLOPs, with the best there is. SVG, light or dark."""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lmkit.pages.chart import CHART_STYLE, NUM_COLORS, compact, escape

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


class Dot(NamedTuple):
    """A finished run: one that was fitted, or one that was held out, with the 90 % that it was predicted to be in."""

    name: str
    size: int  # N
    tokens: float  # D
    flops: float  # 6 N D
    loss: float
    predicted: tuple[float, float, float] | None = None  # low, high, the law's own


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


def draw_law(
    dots: Sequence[Dot], loss_of: Callable[[float, float], float], best_of: Callable[[float], tuple[float, float]]
) -> str:
    """Two panels. A full dot is a run that was fitted, a ring one that was held out.

    Args:
        loss_of: (N, D) -> the law's loss in nats a token.
        best_of: FLOPs -> the N and D that use them best.
    """
    losses = [one.loss for one in dots] + [end for one in dots for end in one.predicted or ()]
    y = min(losses) / 1.04, max(losses) * 1.04
    sizes = sorted({one.size for one in dots})
    left, right = (Panel(LEFT + n * (WIDTH + GAP), _room(values), y)
                   for n, values in enumerate(([d.tokens for d in dots], [d.flops for d in dots])))  # fmt: skip
    out = [left.frame("Loss (nats a token)", "tokens D"), right.frame("and its best use of FLOPs", "6 N D")]
    out.append(right.line([(flops, loss_of(*best_of(flops))) for flops in _between(*right.x)], 'class="best"'))
    for number, n in enumerate(sizes):
        points = [(tokens, loss_of(n, tokens)) for tokens in _between(*left.x)]
        out.append(left.line(points, f'stroke="{_color(number)}"'))
        out.append(right.line([(6.0 * n * tokens, loss) for tokens, loss in points], f'stroke="{_color(number)}"'))
        corner = f'x="{LEFT + WIDTH + 8}" y="{TOP + 12 + 16 * number}"'
        out.append(f'<text {corner} style="fill:{_color(number)}">N {compact(n, 3)}</text>')
    out += [_point(left, one, one.tokens, sizes.index(one.size)) for one in dots]
    out += [_point(right, one, one.flops, sizes.index(one.size)) for one in dots]
    width, height = 2 * (LEFT + WIDTH) + GAP, TOP + HEIGHT + 50
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="Runs, and the law fitted to them">{_STYLE}'
        f'<rect width="100%" height="100%" rx="8" fill="var(--bg)"/>{"".join(out)}</svg>\n'
    )


def _point(panel: Panel, dot: Dot, at: float, color: int) -> str:
    x, y = panel.at(at, dot.loss)
    name = f"<title>{escape(dot.name)}: {dot.loss:.4f}</title>"
    if dot.predicted is None:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_color(color)}">{name}</circle>'
    ends = [panel.at(at, end)[1] for end in dot.predicted[:2]]
    bar = f'<path class="bar" stroke="{_color(color)}" d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}"/>'
    return f'{bar}<circle class="held" stroke="{_color(color)}" cx="{x:.1f}" cy="{y:.1f}" r="5">{name}</circle>'


def _color(number: int) -> str:
    return f"var(--c{number % NUM_COLORS})"


def _room(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 1.5, max(values) * 1.5


def _between(low: float, high: float, count: int = 60) -> list[float]:
    return [low * (high / low) ** (n / (count - 1)) for n in range(count)]


def _tick(value: float) -> str:
    return compact(value) if value < 1e10 else f"{value:.0e}".replace("e+", "e")
