"""The table of collectives: what a compiled step sends beside the least that theory asks for."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from lmkit.compiler.collectives import Collective, Traffic, total
from lmkit.cost.traffic import Least

_UNITS = {"KiB": 2**10, "MiB": 2**20}
TrafficTable = dict[tuple[tuple[str, ...], str], tuple[Traffic, float]]


def traffic_rows(found: Iterable[Collective], least: Iterable[Least]) -> TrafficTable:
    """By (axes, kind): what is sent, and the least; the largest first."""
    sent: dict = total(found, "axes", "kind")
    asked: dict = {}
    for row in least:
        name = (row.axes, row.kind)
        asked[name] = asked.get(name, 0.0) + row.sent_bytes
    nothing = Traffic(0, 0.0)
    rows = {name: (sent.get(name, nothing), asked.get(name, 0.0)) for name in [*sent, *asked]}
    return dict(sorted(rows.items(), key=lambda item: -max(item[1][0].sent_bytes, item[1][1])))


def show_traffic(console: Console, title: str, found: list[Collective], least: list[Least], unit: str) -> None:
    """Prints the table and, for each thing that must be sent, why."""
    table, scale = Table(title=f"[bold]{title}", title_justify="left", box=None), _UNITS[unit]
    for name in ("axes", "kind", "count", f"{unit} sent", "at least", "ratio"):
        table.add_column(name, justify="left" if name in ("axes", "kind") else "right")
    rows = traffic_rows(found, least)
    for (axes, kind), (traffic, least_bytes) in rows.items():
        table.add_row(" x ".join(axes), kind, *_figures(traffic, least_bytes, scale))
    sums = Traffic(sum(t.count for t, _ in rows.values()), sum(t.sent_bytes for t, _ in rows.values()))
    table.add_row("", "together", *_figures(sums, sum(asked for _, asked in rows.values()), scale))
    console.print(table)
    reasons: dict[tuple[str, str, str], float] = {}
    for row in least:
        name = (" x ".join(row.axes), row.kind, row.why)
        reasons[name] = reasons.get(name, 0.0) + row.sent_bytes
    for (axes, kind, why), sent in reasons.items():
        console.print(f"at least, {axes}, {kind}: {sent / scale:,.1f} {unit} for {why}", style="dim", soft_wrap=True)


def _figures(traffic: Traffic, least_bytes: float, scale: float) -> tuple[str, str, str, str]:
    ratio = f"{traffic.sent_bytes / least_bytes:.3f}" if least_bytes else ""
    return str(traffic.count), f"{traffic.sent_bytes / scale:,.1f}", f"{least_bytes / scale:,.1f}", ratio
