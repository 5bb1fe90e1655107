"""What a report shows of a run's figures: charts over the steps, and which classes are taken for which."""

import re
from collections.abc import Callable
from typing import Any

from lmkit.console import duration, size
from lmkit.pages.chart import Chart, Series, escape, with_mean

GIB = 2**30
MOST_CLASSES = 40

Columns = dict[str, tuple[list[int], list[float | None]]]  # metric: (steps, values)


def charts_of(columns: Columns) -> list[Chart]:
    """What there is to draw, in the order in which one looks at it."""

    def line(name: str, label: str, color: int = 0, style: Any = "line", scale: float = 1.0) -> list[Series]:
        steps, values = columns.get(name, ([], []))
        return [Series(label, steps, [None if v is None else v * scale for v in values], color, style)] if steps else []

    def train(name: str, scale: float = 1.0) -> list[Series]:
        return [series for raw in line(f"train/{name}", "train", scale=scale) for series in with_mean(raw)]

    def held_out(name: str, label: str = "held-out", color: int = 1, scale: float = 1.0) -> list[Series]:
        return line(f"eval/{name}", label, color, "points", scale)

    parts = sorted(part[1] for name in columns if (part := re.fullmatch("eval/(.+)/loss", name)))
    by_part = [s for i, part in enumerate(parts) for s in held_out(f"{part}/loss", part, i)]
    memory = [("host", 0), ("device", 2)]
    memory = [s for where, color in memory for s in line(f"memory/{where}_bytes", where, color, scale=1 / GIB)]
    charts = [
        Chart("Loss", "nats", train("loss") + held_out("loss"), wide=True),
        Chart("Held-out bits per byte", "bits", held_out("bits_per_byte")),
        Chart("Held-out loss by part", "nats", by_part),
        Chart("Accuracy", "%", train("accuracy", 100) + held_out("accuracy", scale=100)),
        Chart("Held-out F1", "of the positive class, or the mean over classes", held_out("f1")),
        Chart(
            "Held-out errors", "in the target's units", held_out("mse", "squared", 1) + held_out("mae", "absolute", 2)
        ),
        Chart("Translation", "0 to 100", held_out("bleu", "BLEU", 1) + held_out("chrf", "chrF", 2)),
        Chart("Speech", "% errors", held_out("wer", "words", 1, 100) + held_out("cer", "characters", 2, 100)),
        Chart("Experts: load", "the most chosen one's over an even one", line("train/router_max_load", "train")),
        Chart("Experts: dropped", "% of choices", line("train/router_dropped", "train", scale=100)),
        *_tasks(columns, held_out),
        Chart("Throughput", "tokens per second", train("tokens_per_sec"), zero=True),
        Chart("Model FLOPs utilisation", "%", train("mfu", 100), zero=True),
        Chart("Waiting for data", "% of the time", train("data_wait_share", 100), zero=True),
        Chart("Learning rate", "schedule", line("train/learning_rate", "train"), zero=True, robust=False),
        Chart("Gradient norm", "before clipping", train("grad_norm"), zero=True),
        Chart("Memory", "GiB", memory, zero=True, robust=False),
    ]
    return [chart for chart in charts if chart.series]


def _tasks(columns: Columns, held_out: Callable[..., list[Series]]) -> list[Chart]:
    """A chart a metric of the tasks that were scored on the way."""
    found: dict[str, list[str]] = {}
    for name in columns:
        if match := re.fullmatch(r"eval/tasks/(.+)/([^/]+)", name):
            found.setdefault(match[2], []).append(match[1])
    return [
        Chart(f"Tasks: {metric}", "lm-eval", [s for i, task in enumerate(tasks)
                                              for s in held_out(f"tasks/{task}/{metric}", task, i)])
        for metric, tasks in found.items()
    ]  # fmt: skip


def finite(value: Any) -> float | None:
    """A finite number, or None. Above 1e300 sums and differences would overflow."""
    isfinite = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if isfinite and abs(value) < 1e300 else None


def confusion_table(found: dict[str, Any]) -> str:
    """A confusion matrix {labels, confusion} as a table, shaded by shares of the true class; "" without one."""
    try:
        labels, rows = [str(label) for label in found["labels"]], [[int(n) for n in row] for row in found["confusion"]]
    except (ValueError, KeyError, TypeError):
        return ""
    if not rows or len(labels) > MOST_CLASSES or any(len(row) != len(labels) for row in rows):
        return ""
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in labels)
    lines = []
    for label, row in zip(labels, rows, strict=False):
        total = max(sum(row), 1)
        cells = "".join(_cell(count, count / total, other == label) for count, other in zip(row, labels, strict=True))
        lines.append(f'<tr><th scope="row">{escape(label)}</th>{cells}<td>{row[len(lines)] / total:.1%}</td></tr>')
    head = f'<tr><th>true \\ predicted</th>{head}<th scope="col">recall</th></tr>'
    table = f'<table class="confusion"><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<h2>Classes</h2>\n<div class="sheet">{table}</div>'


def planned_table(
    expected: dict[str, Any], planned: dict[str, Any], measured: dict[str, Any], summary: dict[str, Any]
) -> str:
    """What was planned beside what was measured, and where either is missing the reason; "" without a plan.

    `expected` is a first guess from FLOPs and peaks alone: the wall time, and the rest where there is no plan.
    """
    if not (expected or planned):
        return ""
    before = {name: expected.get(name) for name in ("wall_sec", "tokens_per_sec")} | planned
    after = {name: summary.get(name) for name in ("wall_sec", "tokens_per_sec", "mfu")} | measured
    lines = []
    for title, name, write in (
        ("Wall time", "wall_sec", duration),
        ("Seconds a step (median)", "step_sec", lambda value: f"{value:.4g}"),
        ("Tokens per second", "tokens_per_sec", lambda value: f"{value:,.0f}"),
        ("Model FLOPs utilisation", "mfu", lambda value: f"{value:.1%}"),
        ("Memory of a device", "memory_bytes", size),
        ("Peak of the whole process", "process_peak_bytes", size),
        ("CPU seconds a step", "cpu_sec", lambda value: f"{value:.4g}"),
    ):
        told, seen = (_positive(part.get(name)) for part in (before, after))
        if told or seen:
            shown = [write(told) if told else "–", write(seen) if seen else "–"]
            shown.append(f"{told / seen:.2f}" if told and seen else "–")
            cells = "".join(f"<td>{cell}</td>" for cell in shown)
            lines.append(f'<tr><th scope="row">{title}</th>{cells}</tr>')
    said = [f"planned: {planned['from']}"] if "from" in planned else []
    said += [f"not {what}: {part['reason']}" for what, part in (("planned", planned), ("measured", measured))
             if "reason" in part]  # fmt: skip
    if "memory_of" in measured:
        said.append(f"memory measured: {measured['memory_of']}; load {_positive(measured.get('load')):.1f}")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Figure", "Planned", "Measured", "Ratio"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>" if lines else ""
    note = escape("; ".join(map(str, said)))
    return f'<h2>Planned and measured</h2>\n<div class="sheet">{table}<p class="soft">{note}</p></div>'


def _positive(value: Any) -> float:
    """A number above 0, or 0."""
    number = finite(value)
    return number if number is not None and number > 0 else 0.0


def _cell(count: int, share: float, right: bool) -> str:
    tint = "23,119,68" if right else "190,60,40"
    style = f' style="background:rgba({tint},{0.08 + 0.6 * share:.2f})"' if count else ""
    return f"<td{style}>{count or ''}</td>"
