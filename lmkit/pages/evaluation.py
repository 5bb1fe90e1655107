"""The pages of an evaluation: what a model is worth in each task, and which of several is better."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lmkit.pages.chart import escape, exact
from lmkit.pages.page import cards, html_page, table

_SIZE, _PAD = 260, 34  # of the calibration plot
_SHOWN = 12  # items of a list
_MOST_CHARS = 1200  # of an item


class Shown(NamedTuple):
    """An item to look at."""

    number: int
    share: float  # a probability that says why it is shown
    text: str
    said: str
    truth: str


class TaskPage(NamedTuple):
    """What is told of one task."""

    name: str
    figures: list[tuple[str, float, float]]  # metric, value, standard error
    items: int
    bins: list[tuple[float, float, int]]  # confidence, accuracy, items
    ece: float
    wrong: list[Shown]  # by the confidence in what was said
    hardest: list[Shown]  # by the probability of the truth
    categories: list[tuple[str, int, float]]  # name, items, score
    more: list[tuple[str, str, str]] = []  # noqa: RUF012 (figures of robustness and contamination: name, value, note)


def draw_evaluation(title: str, note: str, tasks: Sequence[TaskPage], notes: Sequence[str]) -> str:
    """The page of one model."""
    rows = [
        (escape(task.name), escape(metric), figure(value), _error(error), f"{task.items:,}")
        for task in tasks for metric, value, error in task.figures
    ]  # fmt: skip
    parts = [("", table(("Task", "Figure", "Value", "± standard error", "Items"), rows))]
    if notes:
        parts.append(("", "".join(f'<p class="soft">{escape(one)}</p>' for one in notes)))
    parts += [(escape(task.name), _task(task)) for task in tasks]
    return html_page(title, note, parts)


class ComparedTask(NamedTuple):
    """Two models on the same items."""

    name: str
    metric: str
    items: int
    scores: tuple[float, float]
    difference: float
    low: float
    high: float
    p: float
    verdict: str
    differ: list[tuple[int, str, str, str]]  # number, text, what A said, what B said


def draw_comparison(title: str, note: str, pairs: Sequence[tuple[str, str, list[ComparedTask]]]) -> str:
    """The page of several models, two at a time."""
    parts = []
    for a, b, tasks in pairs:
        rows = [
            (escape(one.name), escape(one.metric), f"{one.items:,}", *(f"{score:.4f}" for score in one.scores),
             f"{one.difference:+.4f}", f"{one.low:+.4f} to {one.high:+.4f}", f"{one.p:.3f}", escape(one.verdict))
            for one in tasks
        ]  # fmt: skip
        head = ("Task", "Figure", "Items", "A", "B", "B − A", "Interval", "p", "")
        names = f'<p class="soft">A: {escape(a)}<br>B: {escape(b)}</p>'
        parts.append((f"{escape(_short(a))} and {escape(_short(b))}", names + table(head, rows)))
        for one in tasks:
            cells = [(f"{n}", f"<pre>{_cut(text)}</pre>", _cut(x), _cut(y)) for n, text, x, y in one.differ[:_SHOWN]]
            if cells:
                told = f"{escape(one.name)}: items on which they differ ({len(one.differ):,})"
                parts.append(("", f"<details><summary>{told}</summary>"
                                  f"{table(('Item', 'Text', 'A', 'B'), cells)}</details>"))  # fmt: skip
    return html_page(title, note, parts)


def _task(task: TaskPage) -> str:
    boxes = [(escape(metric), figure(value), _error(error)) for metric, value, error in task.figures[:3]]
    if math.isfinite(task.ece):
        boxes.append(("Calibration error", f"{task.ece:.4f}", "mean distance of confidence and accuracy"))
    boxes += [(escape(name), escape(value), escape(note)) for name, value, note in task.more]
    parts = [cards(boxes)]
    if task.bins:
        parts.append(f'<h2>Confidence and accuracy</h2>\n<div class="sheet">{_plot(task.bins)}</div>')
    if task.categories:
        rows = [(escape(name), f"{count:,}", f"{score:.4f}") for name, count, score in task.categories]
        parts.append("<h2>Categories</h2>\n" + table(("Category", "Items", "Score"), rows))
    for told, items in (("Wrong and most confident", task.wrong), ("Hardest", task.hardest)):
        if items:
            parts.append(f"<details><summary>{told} ({len(items):,})</summary>{_items(items[:_SHOWN])}</details>")
    return "\n".join(parts)


def _items(items: Sequence[Shown]) -> str:
    cells = [(f"{one.number}", f"{one.share:.3f}", f"<pre>{_cut(one.text)}</pre>", _cut(one.said), _cut(one.truth))
             for one in items]  # fmt: skip
    return table(("Item", "Probability", "Text", "Said", "Truth"), cells)


def _plot(bins: Sequence[tuple[float, float, int]]) -> str:
    """Accuracy over confidence, a disc for each bin, as large as its items are many; the diagonal is calibrated."""
    most, side = max(count for _, _, count in bins), _SIZE - 2 * _PAD

    def place(x: float, y: float) -> tuple[float, float]:
        return _PAD + side * x, _SIZE - _PAD - side * y

    discs = []
    for confidence, accuracy, count in bins:
        x, y = place(confidence, accuracy)
        told = f"confidence {confidence:.2f}, accuracy {accuracy:.2f}, {count:,} items"
        discs.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + 9 * math.sqrt(count / most):.1f}" fill="var(--c0)" '
                     f'fill-opacity=".55"><title>{told}</title></circle>')  # fmt: skip
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    ticks = "".join(
        f'<text x="{place(t, 0)[0]:.1f}" y="{y0 + 16}" text-anchor="middle">{t:g}</text>'
        f'<text x="{x0 - 6}" y="{place(0, t)[1] + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in (0, 0.5, 1)
    )
    return (
        f'<svg role="img" aria-label="accuracy over confidence" viewBox="0 0 {_SIZE} {_SIZE}" '
        f'style="width:{_SIZE}px;height:{_SIZE}px;font-size:11px;fill:var(--soft)">'
        f'<rect x="{x0}" y="{y1}" width="{side}" height="{side}" fill="none" stroke="var(--line)"/>'
        f'<path class="c5" d="M{x0} {y0}L{x1} {y1}" stroke-dasharray="4 4"/>{"".join(discs)}{ticks}'
        f'<text x="{_SIZE / 2}" y="{_SIZE - 4}" text-anchor="middle">confidence</text></svg>'
    )


def figure(value: float) -> str:
    """A figure with four places, a large one with four digits."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def _error(error: float) -> str:
    return f"± {exact(error)}" if math.isfinite(error) else ""


def _cut(text: str) -> str:
    """The end of a long text: of a prompt the item stands last."""
    return escape(text if len(text) <= _MOST_CHARS else "… " + text[-_MOST_CHARS:])


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name
