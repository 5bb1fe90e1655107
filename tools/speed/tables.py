"""From what the rows answered to records and tables: ratios to the peers, MFU and floors against the run's rates."""

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]
NOT_MEASURED = "not measured"


def derived(rows: Sequence[Record], rates: Sequence[Record]) -> list[Record]:
    """The rows with what follows from them together: ratio, MFU, floors, gap.

    Time is CPU seconds on a CPU, where the wall tells of neighbours, too, and seconds elsewhere. Rates are the best
    that any library reached in the run, so MFU is the share of what the machine can do. Peers train the same model:
    where a row does not say what a step computes, that of lmkit's row with as many parameters and tokens holds.
    """
    on_cpu = not any(rate.get("platform", "cpu") != "cpu" for rate in rates)
    clock, speed = ("cpu_s", "flops_per_cpu_sec") if on_cpu else ("step_s", "flops_per_sec")
    matmul = max((rate[speed] for rate in rates if rate.get(speed)), default=None)
    copy = max((rate["bytes_per_sec"] for rate in rates if rate.get("bytes_per_sec")), default=None)
    device = next((rate["device"] for rate in rates if rate.get("device")), None)
    work = {_size(row): row for row in rows if row.get("flops_per_step")}
    peers = [row[clock] for row in rows if row.get("kind") == "peer" and "error" not in row]
    found = []
    for row in rows:
        new = dict(row) | {"platform": "cpu" if on_cpu else "gpu", "device": device}
        new |= {"matmul_flops": matmul, "copy_bytes": copy}
        if "error" not in row:
            new["ratio"] = row[clock] / min(peers) if peers else None
            known = work.get(_size(row), {})
            flops, moved = known.get("flops_per_step"), known.get("bytes_per_step")
            new |= {"flops_per_step": flops, "bytes_per_step": moved}
            if flops and moved and matmul and copy:
                floors = (flops / matmul, moved / copy)
                new |= {"mfu": floors[0] / row[clock], "flops_floor_s": floors[0], "bytes_floor_s": floors[1]}
                new["gap"] = row[clock] / max(floors)
        found.append(new)
    return found


def _size(row: Record) -> tuple[Any, Any]:
    return row.get("params"), row.get("tokens_per_step")


def terminal(rows: Sequence[Record]) -> str:
    """The rows; the ratio is time against the fastest peer's."""
    head = f"{'name':24} {'tok/s':>8} {'(min-max)':>17} {'CPU s/step':>10} {'(min-max)':>13} {'ratio':>6} {'MFU':>6} "
    lines = [head + f"{'1st step':>8} {'warm':>6} {'MiB':>7} {'device':>7} first and last loss"]
    for r in rows:
        if "error" in r:
            lines.append(f"{r['name']:24} {r['error']}")
            continue
        rates = f"({r['tokens_per_sec_min']:.0f}-{r['tokens_per_sec_max']:.0f})"
        cpus = f"({r['cpu_s_min']:.2f}-{r['cpu_s_max']:.2f})"
        speed = f"{r['tokens_per_sec']:8.0f} {rates:>17} {r['cpu_s']:10.2f} {cpus:>13}"
        lines.append(
            f"{r['name']:24} {speed} {show(r.get('ratio'), '.2f'):>6} {show(r.get('mfu'), '.0%'):>6} "
            f"{r['to_first_step_s']:8.1f} {show(r.get('warm_first_step_s'), '.1f'):>6} "
            f"{show(r.get('peak_rss_mb'), '.0f'):>7} {show(_device_mb(r), '.0f'):>7} "
            f"{r['first_loss']:.5f} {r['last_loss']:.5f}"
        )
    return "\n".join(lines)


def show(value: float | None, form: str, missing: str = "-") -> str:
    """A figure, or that there is none."""
    return missing if value is None else format(value, form)


def _device_mb(row: Record) -> float | None:
    return row.get("device_peak_mb") or row.get("device_used_mb")


HEAD = ("row", "tokens/s (min-max)", "CPU s/step (min-max)", "ratio", "MFU", "first step cold / warm, s", "peak MiB",
        "FLOPs floor, s", "bytes floor, s", "gap")  # fmt: skip


def markdown(rows: Sequence[Record]) -> str:
    """The same for a document; what a row does not say is "not measured"."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(row))} |" for row in rows)]) + "\n"


def cells(row: Record) -> list[str]:
    """One row of the table."""
    if "error" in row:
        return [row["name"], row["error"], *[""] * (len(HEAD) - 2)]

    def say(name: str, form: str) -> str:
        return show(row.get(name), form, NOT_MEASURED)

    ratio = "" if row.get("ratio") is None else f"{row['ratio']:.2f}"  # a run without a peer has none
    memory = _device_mb(row)
    return [
        row["name"],
        f"{row['tokens_per_sec']:,.0f} ({row['tokens_per_sec_min']:,.0f}-{row['tokens_per_sec_max']:,.0f})",
        f"{row['cpu_s']:.2f} ({row['cpu_s_min']:.2f}-{row['cpu_s_max']:.2f})",
        ratio,
        say("mfu", ".0%"),
        f"{row['to_first_step_s']:.1f} / {say('warm_first_step_s', '.1f')}",
        f"{row['peak_rss_mb']:,.0f}" + (f", device {memory:,.0f}" if memory else ""),
        say("flops_floor_s", ".3g"),
        say("bytes_floor_s", ".3g"),
        say("gap", ".2f"),
    ]
