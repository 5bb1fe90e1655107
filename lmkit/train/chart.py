"""Line charts as inline SVG for the run report: thinned, robustly scaled, with round ticks.

The SVG holds lines only and stretches with the page; every word is HTML over it, so text keeps its size on a phone.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

MOST_POINTS = 600  # more than one a pixel cannot be seen, and keeps a page of ten charts near 200 kB
WIDTH, HEIGHT = 1000, 400  # units of the viewBox; the page decides the real size
NUM_COLORS = 6  # as many as the style sheet of the report defines

# What HTML forbids (control characters, surrogates, non-characters), and what a file of UTF-8 cannot hold.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

Range = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Values by ascending step; None stands for a value that was not finite."""

    label: str
    steps: Sequence[int]
    values: Sequence[float | None]
    color: int = 0
    style: Literal["line", "faint", "points"] = "line"

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if value is not None]


@dataclass(frozen=True)
class Chart:
    """Series on common axes. `zero` keeps 0 in view; `robust` lets outliers leave the frame; `wide` takes a full row."""

    title: str
    unit: str
    series: Sequence[Series]
    zero: bool = False
    robust: bool = True
    wide: bool = False


def escape(value: Any) -> str:
    """Any value as text that is safe between tags and in a quoted attribute."""
    return html.escape(_FORBIDDEN.sub("\ufffd", str(value).replace("\r\n", "\n").replace("\r", "\n")))


def exact(value: float) -> str:
    """A value to read: four digits, thousands apart. The script of the report writes the same."""
    if value and not 1e-3 <= abs(value) < 1e12:
        return _exponent(value)
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"


def compact(value: float) -> str:
    """A tick: 500, 1k, 20k, 1.5M, 3e-4."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < size * 1e3:
            return f"{value / size:.10g}{letter}"
    return f"{value:.10g}" if not value or 1e-3 <= abs(value) < 1e3 else _exponent(value)


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
    return _pick(series, sorted(keep))


def smooth(series: Series, points: int = MOST_POINTS // 2) -> tuple[Series, int]:
    """The mean over a window of 4% of the rows around each of up to `points` rows, and the rows in that window.

    The window shrinks towards the start, where losses fall fast and a one-sided mean would show them too low; at the
    end it looks back only. Each window is summed by itself: a running sum would never recover from a value of 1e38.
    """
    count = len(series.values)
    half = count // 50
    middles = sorted({k * (count - 1) // (points - 1) for k in range(points)}) if count else []
    means = {}
    for i in middles:
        window = [v for v in series.values[max(0, i - half) : i + min(half, i) + 1] if v is not None]
        means[i] = math.fsum(window) / len(window) if window else None
    smoothed = _pick(series, middles)
    return replace(smoothed, values=[means[i] for i in middles], style="line"), 2 * half + 1


def _pick(series: Series, rows: Sequence[int]) -> Series:
    return replace(series, steps=[series.steps[i] for i in rows], values=[series.values[i] for i in rows])


def x_range(charts: Sequence[Chart]) -> Range:
    """One range of steps for all charts, so that one crosshair serves them all."""
    ends = [step for chart in charts for series in chart.series for step in (series.steps[0], series.steps[-1])]
    low, high = min(ends), max(ends)
    if low < high / 10:
        low = min(0, low)
    pad = max((high - low) / 80, 0.5 if high == low else 0.0)  # room for the marker of the last evaluation
    return low - pad, high + pad


def y_range(chart: Chart) -> Range:
    """Range of the values worth seeing: the first few losses are ten times the rest and would flatten it."""
    series = sorted((s.finite for s in chart.series if s.finite), key=len, reverse=True)
    spans = [_fence(values) if chart.robust else (min(values), max(values)) for values in series]
    if chart.robust:
        # Three evaluations have no quantiles: where a longer series sets the range, only the last one must be seen.
        spans[1:] = [s if len(v) >= 4 else (v[-1], v[-1]) for s, v in zip(spans[1:], series[1:], strict=True)]
    low, high = min(s[0] for s in spans), max(s[1] for s in spans)
    low, high = (min(low, 0.0), max(high, 0.0)) if chart.zero else (low, high)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size:
        low, high = low - (0.1 * size or 1.0), high + (0.1 * size or 1.0)
    pad = 0.06 * (high - low)
    return (low if chart.zero and low == 0 else low - pad), high + pad


def _fence(values: Sequence[float]) -> Range:
    """Tenth to ninetieth percentile and as much again on both sides, but no more than the values fill."""
    if len(values) < 4:
        return min(values), max(values)
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


def draw(chart: Chart, steps: Range) -> tuple[str, dict[str, Any]]:
    """The figure as HTML, and the points that the script reads out: {"y": range, "series": [[steps, values], ...]}."""
    values = y_range(chart)
    drawn = [thin(series) for series in chart.series]
    grid = "".join(f'<path class="grid" d="M0 {_y(t, values):.1f}H{WIDTH}"/>' for t in ticks(*values))
    lines = "".join(_lines(series, steps, values) for series in drawn)
    labels = "".join(
        f'<span class="ytick" style="top:{_y(t, values) / HEIGHT:.2%}">{compact(t)}</span>' for t in ticks(*values)
    ) + "".join(
        f'<span class="xtick" style="left:{_x(t, steps) / WIDTH:.2%}">{compact(t)}</span>'
        for t in ticks(*steps, whole=True)
        if t >= 0  # the margin at the left is no step
    )
    legend = "".join(
        f'<span class="key {s.style} c{s.color}">{escape(s.label)} <b>{exact(s.finite[-1]) if s.finite else "–"}</b></span>'
        for s in drawn
    )
    dots = "".join(f'<i class="dot c{series.color}"></i>' for series in drawn)
    name = escape(f"{chart.title} ({chart.unit}) by step")
    figure = f"""<figure{' class="wide"' if chart.wide else ""}>
<figcaption><strong>{escape(chart.title)}</strong> <small>{escape(chart.unit)}</small>
<span class="legend">{legend}</span></figcaption>
<div class="plot"><svg role="img" aria-label="{name}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">
{grid}{lines}</svg>{labels}<span class="xname">step</span><i class="cross"></i>{dots}<span class="at"></span></div>
{_notes(chart, values)}</figure>"""
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
    line = f'<path class="{series.style} c{series.color}" d="{path}"/>'
    if series.style != "points":
        return line
    return line + f'<path class="marks c{series.color}" d="{"".join(f"M{p}h0" for run in runs for p in run)}"/>'


def _notes(chart: Chart, values: Range) -> str:
    """What the frame does not show, in words."""
    notes = []
    for series in chart.series:
        pairs = [(v, s) for s, v in zip(series.steps, series.values, strict=True) if v is not None]
        outside = ((max, "up", [p for p in pairs if p[0] > values[1]]), (min, "down", [p for p in pairs if p[0] < values[0]]))
        for extreme, word, beyond in outside:
            if beyond and series.style != "line":
                value, step = extreme(beyond)
                notes.append(
                    f"{len(beyond):,} of {len(pairs):,} points of {series.label} are out of the frame, "
                    f"{word} to {exact(value)} at step {step:,}."
                )
        if len(pairs) < len(series.values) and series.style != "line":
            first = series.steps[list(series.values).index(None)]
            count = len(series.values) - len(pairs)
            notes.append(f"{series.label}: {count:,} values are not finite, the first at step {first:,}.")
    return f'<p class="note">{escape(" ".join(notes))}</p>\n' if notes else ""
