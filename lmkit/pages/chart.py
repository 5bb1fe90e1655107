"""Line charts as inline SVG for the run report: thinned, robustly scaled, with round ticks.

The SVG holds lines only and stretches with the page; every word is HTML over it, so text keeps its size on a phone.
"""

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

MOST_POINTS = 600  # more than one a pixel cannot be seen, and ten charts stay near 200 kB
WIDTH, HEIGHT = 1000, 400  # units of the viewBox; the page decides the real size
NUM_COLORS = 6
ENOUGH = 20  # points of a line of which a few may leave the frame; of fewer, each is seen
_PATH = '<path class="{}" vector-effect="non-scaling-stroke" d="{}"/>'  # the frame stretches, the line width does not

# What HTML forbids (control characters, surrogates, non-characters), and the marks that turn the direction of text.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)

CHART_STYLE = """
:root{--c0:#2b62d9;--c1:#d9480f;--c2:#0b8573;--c3:#9136b5;--c4:#96700a;--c5:#5b6470}
@media screen and (prefers-color-scheme:dark){:root{--c0:#7aa7ff;--c1:#ff935c;--c2:#4cc9b3;--c3:#d392f0;--c4:#dcb450;
--c5:#a4adba}}.charts{display:grid;grid-template-columns:1fr 1fr;gap:.75rem}
figure{margin:0;padding:.8rem 1rem;min-width:0}figcaption{font-size:.9rem}
.wide,.wide~figure:last-child:nth-child(even){grid-column:1/-1}
.legend{float:right;font-size:.8rem}.key{display:inline-block;margin-left:1rem;color:var(--soft)}b{color:var(--text)}
.key::before{content:"";display:inline-block;width:1rem;height:.16rem;margin:0 .3rem .2rem 0;background:var(--c)}
.key.faint::before{opacity:.45}.key.points::before{width:.5rem;height:.5rem;border-radius:50%;margin-bottom:.05rem}
.plot{position:relative;clear:both;margin:.8rem 0 1.3rem 2.9rem;height:190px;touch-action:pan-y}
.wide .plot{height:300px}svg{display:block;width:100%;height:100%;overflow:hidden}path{fill:none;stroke:var(--c);
stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}.live .plot{cursor:crosshair}
.grid{stroke:var(--line);stroke-width:1}path.faint{stroke-width:1;opacity:.38}path.points{stroke-width:1.2}
.marks{stroke-width:6}.plot span{position:absolute;font-size:.72rem;line-height:1;color:var(--soft);white-space:nowrap}
.plot .ytick{right:100%;margin-right:.5rem;transform:translateY(-50%)}.plot .xtick,.at{transform:translateX(-50%)}
.plot .xtick,.plot .xname,.plot .at{top:100%;margin-top:.45rem}.plot .xname{right:100%;margin-right:.5rem}
.plot .at{padding:.15rem .4rem;margin-top:.3rem;border-radius:.3rem;background:var(--text);color:var(--card)}
.plot i{position:absolute;pointer-events:none}.plot i,.at{visibility:hidden}
.cross{top:0;bottom:0;border-left:1px dotted}
.dot{width:8px;height:8px;margin:-4px;border-radius:50%;background:var(--c)}@media(max-width:700px){.charts{
grid-template-columns:1fr}.wide .plot{height:230px}.legend{float:none;display:block}.key{margin:0 1rem 0 0}}
@media print{.key::before{print-color-adjust:exact}}
""" + "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(NUM_COLORS))

# Moves one crosshair over all charts and writes the values under it into the legends.
SCRIPT = """
"use strict";
const {x, charts} = JSON.parse(document.getElementById("points").textContent);
const exact = v => v === null ? "not finite" : v.toLocaleString("en", {maximumSignificantDigits: 4});
const left = step => 100 * (step - x[0]) / (x[1] - x[0]) + "%";
const nearest = (steps, at) => {
  let low = 0, high = steps.length - 1;
  while (low < high) { const mid = (low + high) >> 1; if (steps[mid] < at) low = mid + 1; else high = mid; }
  return low && at - steps[low - 1] < steps[low] - at ? low - 1 : low;
};
const figures = [...document.querySelectorAll("figure")].map((figure, i) => ({
  ...charts[i], marks: figure.querySelectorAll(".cross, .at"), dots: figure.querySelectorAll(".dot"),
  values: [...figure.querySelectorAll(".key b")].map(node => ({node, last: node.textContent})),
}));
function read(step) {
  for (const {y, series, marks, dots, values} of figures) {
    for (const mark of marks) { mark.style.visibility = "visible"; mark.style.left = left(step); }
    marks[1].textContent = step.toLocaleString("en");
    series.forEach(([steps, points], k) => {
      const row = nearest(steps, step), top = points[row] === null ? -1 : (y[1] - points[row]) / (y[1] - y[0]);
      values[k].node.textContent = exact(points[row]);
      dots[k].style.cssText = `visibility:${top >= 0 && top <= 1 ? "visible" : "hidden"};left:${left(steps[row])}`;
      dots[k].style.top = 100 * top + "%";
    });
  }
}
function clear() {
  for (const {marks, dots, values} of figures) {
    for (const mark of [...marks, ...dots]) mark.style.visibility = "hidden";
    for (const {node, last} of values) node.textContent = last;
  }
}
for (const plot of document.querySelectorAll(".plot")) {
  plot.onpointermove = plot.onpointerdown = event => {
    const box = plot.getBoundingClientRect(), part = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    read(Math.max(0, Math.round(x[0] + part * (x[1] - x[0]))));
  };
  plot.onpointerleave = clear;
}
document.body.className = "live";
"""

Range = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Values by ascending step; None is a value that was not finite. `derived`: from another series of the chart."""

    label: str
    steps: Sequence[int]
    values: Sequence[float | None]
    color: int = 0
    style: Literal["line", "faint", "points"] = "line"
    derived: bool = False

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if value is not None]

    def pick(self, rows: Sequence[int]) -> "Series":
        return replace(self, steps=[self.steps[i] for i in rows], values=[self.values[i] for i in rows])


@dataclass(frozen=True)
class Chart:
    """Series, each with a finite value, on common axes. `zero` keeps 0 in view; `robust` lets outliers leave it."""

    title: str
    unit: str
    series: Sequence[Series]
    zero: bool = False
    robust: bool = True
    wide: bool = False  # takes a full row


def escape(value: Any) -> str:
    """Any value as text that is safe between tags and in a quoted attribute."""
    return html.escape(_FORBIDDEN.sub("\ufffd", str(value).replace("\r\n", "\n").replace("\r", "\n")))


def exact(value: float) -> str:
    """A value to read: four digits, thousands apart."""
    if value and not 1e-3 <= abs(value) < 1e12:
        return _exponent(value)
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"


def compact(value: float, digits: int = 10) -> str:
    """A tick: 500, 1k, 20k, 1.5M, 3e-4."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < size * 1e3:
            return f"{value / size:.{digits}g}{letter}"
    return f"{value:.{digits}g}" if not value or 1e-3 <= abs(value) < 1e3 else _exponent(value)


def _exponent(value: float) -> str:
    mantissa, power = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"


def thin(series: Series, most: int = MOST_POINTS) -> Series:
    """At most `most` points: the ends, and the lowest and the highest of each bucket, so that no spike is lost."""
    count = len(series.steps)
    if count <= most:
        return series
    buckets = most // 2 - 1
    keep = {0, count - 1}
    for bucket in range(buckets):
        span = range(bucket * count // buckets, (bucket + 1) * count // buckets)
        finite = [(value, i) for i in span if (value := series.values[i]) is not None]
        keep |= {min(finite)[1], max(finite)[1]} if finite else {span.start}
    return series.pick(sorted(keep))


def with_mean(series: Series, points: int = MOST_POINTS // 2) -> list[Series]:
    """The series, faint, under its mean over a window of 4% of the rows around each of up to `points` of them.

    The window shrinks towards the start, where losses fall fast and a one-sided mean would show them too low; at the
    end it looks back only. Each window is summed by itself: a running sum would never recover from a value of 1e38.
    """
    half = len(series.values) // 50
    if not half:
        return [series]
    middles = sorted({k * (len(series.values) - 1) // (points - 1) for k in range(points)})
    means: list[float | None] = []
    for i in middles:
        window = [v for v in series.values[max(0, i - half) : i + min(half, i) + 1] if v is not None]
        means.append(math.fsum(window) / len(window) if window else None)
    mean = replace(series.pick(middles), values=means, derived=True, label=f"mean of {2 * half + 1:,} rows")
    return [replace(series, style="faint"), mean]


def x_range(charts: Sequence[Chart]) -> Range:
    """One range of steps for all charts, so that one crosshair serves them all."""
    ends = [step for chart in charts for series in chart.series for step in (series.steps[0], series.steps[-1])]
    low, high = min(ends), max(ends)
    if low <= high / 10:
        low = min(0, low)
    pad = (high - low) / 80 or 0.5  # room for the marker of the last evaluation
    return low - pad, high + pad


def y_range(chart: Chart) -> Range:
    """Range of the values worth seeing: the first few losses are ten times the rest and would flatten it."""
    series = sorted((s.finite for s in chart.series), key=len, reverse=True)
    spans = [(min(values), max(values)) for values in series]
    if chart.robust and len(series[0]) >= ENOUGH:
        # A few evaluations have no quantiles: where a longer series sets the range, only the last one must be seen.
        spans = [_fence(values) if len(values) >= ENOUGH else (values[-1], values[-1]) for values in series]
    low, high = min(s[0] for s in spans), max(s[1] for s in spans)
    low, high = (min(low, 0.0), max(high, 0.0)) if chart.zero else (low, high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 0.1 * abs(high) or 1.0
        low, high = low - room, high + room
    pad = 0.06 * (high - low)
    return (low if chart.zero and low == 0 else low - pad), high + pad


def _fence(values: Sequence[float]) -> Range:
    """Tenth to ninetieth percentile and as much again on both sides, but no more than the values fill."""
    ranked = sorted(values)
    low, high = ranked[math.ceil(0.1 * (len(ranked) - 1))], ranked[int(0.9 * (len(ranked) - 1))]
    reach = max(high - low, 0.05 * abs(high))
    return max(ranked[0], low - reach), min(ranked[-1], high + reach)


def ticks(low: float, high: float, most: int = 6, whole: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the range; `whole` for steps, of which there are no halves."""
    rough = max((high - low) / most, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.999 * rough)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def draw_charts(charts: Sequence[Chart]) -> tuple[str, str]:
    """The figures as HTML, and as JSON the points that SCRIPT reads out of the element with the id "points"."""
    steps = x_range(charts) if charts else (0.0, 1.0)
    drawn = [draw(chart, steps) for chart in charts]
    points = json.dumps({"x": steps, "charts": [data for _, data in drawn]}, separators=(",", ":"))
    return "".join(figure for figure, _ in drawn), points


def draw(chart: Chart, steps: Range) -> tuple[str, dict[str, Any]]:
    """The figure as HTML, and the points that SCRIPT reads out: {"y": range, "series": [[steps, values], ...]}."""
    values = y_range(chart)
    drawn = [thin(series) for series in chart.series]
    rows = [(_y(t, values), compact(t)) for t in ticks(*values)]
    columns = [(_x(t, steps), compact(t)) for t in ticks(*steps, whole=True) if t >= 0]  # the left margin is no step
    grid = "".join(_PATH.format("grid", f"M0 {y:.1f}H{WIDTH}") for y, _ in rows)
    labels = "".join(f'<span class="ytick" style="top:{y / HEIGHT:.2%}">{text}</span>' for y, text in rows)
    labels += "".join(f'<span class="xtick" style="left:{x / WIDTH:.2%}">{text}</span>' for x, text in columns)
    legend = " ".join(
        f'<span class="key {s.style} c{s.color % NUM_COLORS}">{escape(s.label)} <b>{exact(s.finite[-1])}</b></span>'
        for s in drawn
    )
    dots = "".join(f'<i class="dot c{s.color % NUM_COLORS}"></i>' for s in drawn)
    name = escape(f"{chart.title} ({chart.unit}) by step")
    figure = f"""<figure{' class="wide"' if chart.wide else ""}>
<figcaption><strong>{escape(chart.title)}</strong> <small>{escape(chart.unit)}</small>
<span class="legend">{legend}</span></figcaption>
<div class="plot"><svg role="img" aria-label="{name}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">
{grid}{"".join(_lines(s, steps, values) for s in drawn)}</svg>{labels}<span class="xname">step</span>
<i class="cross"></i>{dots}<span class="at"></span></div>
{_notes(chart, values)}</figure>
"""
    points = [[list(s.steps), [None if v is None else float(f"{v:.6g}") for v in s.values]] for s in drawn]
    return figure, {"y": list(values), "series": points}


def _x(step: float, steps: Range) -> float:
    return WIDTH * (step - steps[0]) / (steps[1] - steps[0])


def _y(value: float, values: Range) -> float:
    """Down from the top; kept within a frame's height of the frame, since browsers drop paths with huge numbers."""
    return min(max(HEIGHT * (values[1] - value) / (values[1] - values[0]), -HEIGHT), 2 * HEIGHT)


def _lines(series: Series, steps: Range, values: Range) -> str:
    runs: list[list[str]] = [[]]
    for step, value in zip(series.steps, series.values, strict=True):
        if value is None:
            runs.append([])  # a gap, not a line across what is not known
        else:
            runs[-1].append(f"{_x(step, steps):.1f} {_y(value, values):.1f}")
    # h0 gives a lone point the length that a round line end needs to appear as a dot
    path = "".join("M" + "L".join(run) + ("h0" if len(run) == 1 else "") for run in runs if run)
    color = f"c{series.color % NUM_COLORS}"
    marks = "".join(f"M{point}h0" for run in runs for point in run) if series.style == "points" else ""
    return _PATH.format(f"{series.style} {color}", path) + (_PATH.format(f"marks {color}", marks) if marks else "")


def _notes(chart: Chart, values: Range) -> str:
    """What the frame does not show, in words."""
    notes = []
    for series in (s for s in chart.series if not s.derived):
        pairs = [(v, s) for s, v in zip(series.steps, series.values, strict=True) if v is not None]
        over, under = [p for p in pairs if p[0] > values[1]], [p for p in pairs if p[0] < values[0]]
        for beyond, extreme in ((over, max), (under, min)):
            if beyond:
                value, step = extreme(beyond)
                count = f"{len(beyond):,} of {len(pairs):,} points"
                notes.append(f"{series.label}: {count} out of the frame, the farthest {exact(value)} at step {step:,}.")
        if len(pairs) < len(series.values):
            first = series.steps[list(series.values).index(None)]
            count = f"{len(series.values) - len(pairs):,} of {len(series.values):,} values"
            notes.append(f"{series.label}: {count} not finite, the first at step {first:,}.")
    return f'<p class="note">{escape(" ".join(notes))}</p>\n' if notes else ""
