"""Figures on a terminal."""

import math

from rich.table import Table

from lmkit.console import console
from lmkit.metrics.bootstrap import Figure
from lmkit.pages.evaluation import ComparedTask, figure


def show_figures(figures: dict[str, dict[str, Figure]], confidence: float) -> None:
    """A line a figure: its value, standard error and interval; a confidence of 0 where there are no intervals."""
    table = Table(box=None, title_justify="left", padding=(0, 2, 0, 0))
    for name in ("", "figure", "value", "± standard error", f"{confidence:.0%} interval" if confidence else ""):
        table.add_column(name, justify="right" if name in ("value",) else "left")
    for name, every in figures.items():
        for number, (metric, one) in enumerate(every.items()):
            error = f"± {one.stderr:.4f}" if math.isfinite(one.stderr) else ""
            span = f"{one.low:.4f} to {one.high:.4f}" if math.isfinite(one.low) else ""
            table.add_row(name if not number else "", metric, figure(one.value), error, span)
    console.print(table)


def show_compared(pairs: list[tuple[str, str, list[ComparedTask]]], confidence: float) -> None:
    """A line a task and pair of models."""
    for a, b, tasks in pairs:
        table = Table(box=None, title=f"A {a}\nB {b}", title_justify="left", padding=(0, 2, 0, 0))
        for name in ("task", "figure", "A", "B", "B - A", f"{confidence:.0%} interval", "p", ""):
            table.add_column(name)
        for one in tasks:
            scores, span = (f"{score:.4f}" for score in one.scores), f"{one.low:+.4f} to {one.high:+.4f}"
            table.add_row(one.name, one.metric, *scores, f"{one.difference:+.4f}", span, f"{one.p:.3f}", one.verdict)
        console.print(table)
