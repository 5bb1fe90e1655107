"""Figures on a terminal."""

import math

from rich.table import Table

from lmkit.console import console
from lmkit.metrics.bootstrap import Figure


def show_figures(figures: dict[str, dict[str, Figure]], confidence: float) -> None:
    """A line a figure: its value, standard error and interval."""
    table = Table(box=None, title_justify="left", padding=(0, 2, 0, 0))
    for name in ("", "figure", "value", "± standard error", f"{confidence:.0%} interval"):
        table.add_column(name, justify="right" if name in ("value",) else "left")
    for name, every in figures.items():
        for number, (metric, one) in enumerate(every.items()):
            error = f"± {one.stderr:.4f}" if math.isfinite(one.stderr) else ""
            span = f"{one.low:.4f} to {one.high:.4f}" if math.isfinite(one.low) else ""
            table.add_row(name if not number else "", metric, f"{one.value:.4f}", error, span)
    console.print(table)
