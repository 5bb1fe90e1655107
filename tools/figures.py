"""Draws the curves and the confusion matrix of runs as SVG files that a README can show.

    python tools/figures.py RUN_DIR [LABEL=RUN_DIR ...] --out FOLDER

FOLDER gets curve.svg (the loss and what the runs are judged by; all runs in one chart) and, where a run has
confusion.json, confusion.svg, of several runs confusion_LABEL.svg: light or dark as the reader's system is.
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lmkit.pages.chart import CHART_STYLE, NUM_COLORS, Chart, Series, compact, escape, exact, thin, ticks, with_mean
from lmkit.pages.chart import x_range as steps_of
from lmkit.pages.chart import y_range as values_of
from lmkit.tracker import read_rows

_COLORS = re.findall(r"--c\d:#\w+", CHART_STYLE)  # the report's: first the light ones, then the dark ones
LIGHT, DARK = (";".join(_COLORS[n : n + NUM_COLORS]) for n in (0, NUM_COLORS))
STYLE = f"""<style>
svg{{--bg:#fff;--text:#222;--soft:#666;--line:#e2e2de;--heat:#2b62d9;{LIGHT};font:12px system-ui,sans-serif}}
@media(prefers-color-scheme:dark){{svg{{--bg:#181b20;--text:#e6e7ea;--soft:#9aa0aa;--line:#2c3038;--heat:#3f7cf5;{DARK}}}}}
text{{fill:var(--soft)}}.title{{fill:var(--text);font-weight:600;font-size:13px}}.dark{{fill:var(--text)}}.light{{fill:#fff}}
path{{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}}.grid{{stroke:var(--line);stroke-width:1}}
.faint{{stroke-width:1;opacity:.35}}.marks{{stroke-width:6}}.end{{text-anchor:end}}.middle{{text-anchor:middle}}
</style>"""
PLOT_WIDTH, PLOT_HEIGHT, LEFT, TOP, LETTER = 265, 210, 50, 44, 6.5  # pixels
SHARES = ("accuracy", "f1", "wer")  # shown in per cent
JUDGED_BY = ("bleu", "wer", "accuracy", "bits_per_byte", "perplexity", "mse")  # the first there is


class Run(NamedTuple):
    label: str
    path: Path
    rows: list[dict[str, Any]]

    def series(self, name: str, label: str, color: int, style: Any = "line") -> list[Series]:
        """A metric as one line, or as none."""
        scale = 100 if name.rpartition("/")[2] in SHARES else 1
        points = [(row["step"], scale * row[name]) for row in self.rows if row.get(name) is not None]
        return [Series(label, [s for s, _ in points], [v for _, v in points], color, style)] if points else []


def charts(runs: Sequence[Run]) -> list[Chart]:
    """The loss, and what the runs are judged by. A single run has training and held-out loss in one chart."""
    lone, losses, held_out = len(runs) == 1, [], []
    judged = next((m for m in JUDGED_BY if any(f"eval/{m}" in row for run in runs for row in run.rows)), "loss")
    for number, run in enumerate(runs):
        for one in run.series("train/loss", "training" if lone else run.label, number):
            *faint, mean = with_mean(one)
            losses += [*(faint if lone else []), replace(mean, label=one.label)]
        held_out += run.series(f"eval/{judged}", "held-out" if lone else run.label, number + lone, "points")
    losses += runs[0].series("eval/loss", "held-out", 1, "points") if lone else []
    title = {"wer": "WER", "bleu": "BLEU", "mse": "squared error"}.get(judged, judged.replace("_", " "))
    unit = "%" if judged in SHARES else "nats" if judged == "loss" else ""
    names = [("Loss" if lone else "Training loss", "nats", losses), (f"Held-out {title}", unit, held_out)]
    return [Chart(*name, robust=False) for name in names if name[2]]


def draw(chart: Chart, left: float, steps: tuple[float, float]) -> str:
    """A chart in a panel of its own, with ticks and with each series' name and last value at its end."""
    low, high = values_of(chart)

    def at(step: float, value: float) -> tuple[float, float]:
        y = TOP + PLOT_HEIGHT * (high - value) / (high - low)
        return left + PLOT_WIDTH * (step - steps[0]) / (steps[1] - steps[0]), min(max(y, TOP), TOP + PLOT_HEIGHT)

    bottom, unit = TOP + PLOT_HEIGHT, f" ({chart.unit})" if chart.unit else ""
    out = [f'<text class="title" x="{left}" y="24">{chart.title}{unit}</text>']
    for value, (_, y) in ((value, at(0, value)) for value in ticks(low, high)):
        out.append(f'<path class="grid" d="M{left} {y:.1f}h{PLOT_WIDTH}"/>')
        out.append(f'<text class="end" x="{left - 8}" y="{y + 4:.1f}">{compact(value)}</text>')
    for step in (step for step in ticks(*steps, whole=True) if step >= 0):
        out.append(f'<text class="middle" x="{at(step, low)[0]:.1f}" y="{bottom + 18}">{compact(step)}</text>')
    out.append(f'<text class="middle" x="{left + PLOT_WIDTH / 2}" y="{bottom + 36}">steps</text>')
    labels: list[tuple[float, str]] = []
    for series in chart.series:
        points = [at(*point) for point in zip(thin(series).steps, thin(series).finite, strict=True)]
        color, path = f"var(--c{series.color % NUM_COLORS})", "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        out.append(f'<path class="{series.style}" stroke="{color}" d="M{path}"/>')
        if series.style == "points":
            dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
            out.append(f'<path class="marks" stroke="{color}" d="{dots}"/>')
        if series.style != "faint":
            labels.append((points[-1][1], f'fill:{color}">{escape(series.label)} {exact(series.finite[-1])}</text>'))
    y = -math.inf
    for wanted, text in sorted(labels):
        y = max(wanted, y + 15)
        out.append(f'<text x="{left + PLOT_WIDTH + 6}" y="{y + 4:.1f}" style="{text}')
    return "".join(out)


def page(width: float, height: float, title: str, inside: str) -> str:
    """A whole SVG file."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    card = '<rect width="100%" height="100%" rx="8" fill="var(--bg)"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">{STYLE}{card}{inside}</svg>\n'
    )


def draw_confusion(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """The confusion matrix as a heat map: each row is a true class, shaded by the share of its rows."""
    longest = LETTER * max(map(len, labels))
    cell, left, side = max(34, longest + 12), longest + 40, max(34, longest + 12) * len(labels)
    out = ['<text class="title" x="14" y="24">Held-out rows by true and by predicted class</text>']
    for row, (label, counts) in enumerate(zip(labels, matrix, strict=True)):
        y = TOP + 20 + row * cell
        out.append(f'<text class="end" x="{left - 8}" y="{y + cell / 2 + 4}">{escape(label)}</text>')
        out.append(f'<text class="middle" x="{left + (row + 0.5) * cell}" y="{TOP + 12}">{escape(label)}</text>')
        for column, count in enumerate(counts):
            share, x = count / max(sum(counts), 1), left + column * cell
            box = f'x="{x + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" rx="3"'
            out.append(f'<rect {box} fill="var(--heat)" fill-opacity="{0.04 + 0.96 * share**0.5:.3f}"/>')
            tone = "light" if share > 0.3 else "dark"
            out.append(f'<text class="middle {tone}" x="{x + cell / 2}" y="{y + cell / 2 + 4}">{count}</text>')
    out.append(f'<text class="middle" x="{left + side / 2}" y="{TOP + side + 44}">predicted (rows: true)</text>')
    return page(max(left + side + 16, 360), TOP + side + 60, "Confusion matrix", "".join(out))


def main(arguments: argparse.Namespace) -> None:
    places = [(label, Path(place)) for label, _, place in (run.rpartition("=") for run in arguments.runs)]
    runs = [Run(label or path.resolve().name, path, read_rows(path / "metrics.jsonl")) for label, path in places]
    if not (drawn := charts(runs)):
        raise SystemExit(f"figures: no metrics.jsonl with a loss in {', '.join(str(run.path) for run in runs)}")
    width = LEFT + PLOT_WIDTH + LETTER * (9 + max(len(series.label) for chart in drawn for series in chart.series))
    panels = "".join(draw(chart, LEFT + n * width, steps_of(drawn)) for n, chart in enumerate(drawn))
    written = {"curve.svg": page(width * len(drawn), TOP + PLOT_HEIGHT + 50, "Curves of the runs", panels)}
    for run in runs:
        if (path := run.path / "confusion.json").is_file():
            file = json.loads(path.read_text())
            suffix = "" if len(runs) == 1 else "_" + re.sub(r"\W+", "_", run.label.lower())
            written[f"confusion{suffix}.svg"] = draw_confusion(file["labels"], file["confusion"])
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        (arguments.out / name).write_text(text, encoding="utf-8")
        print(arguments.out / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="directory of a run, or LABEL=DIRECTORY")
    parser.add_argument("--out", type=Path, required=True, help="folder that the pictures go to")
    main(parser.parse_args())
