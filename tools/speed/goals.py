"""The goals for speed, each beside the figure that the records give, or beside "not measured"."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from speed.tables import NOT_MEASURED

Record = dict[str, Any]
Records = dict[str, list[Record]]  # kind: records, oldest first


class Goal(NamedTuple):
    """`figure` gives None where nothing was measured."""

    where: str
    what: str
    limit: float
    most: bool  # whether the limit is the most that the figure may be, or the least
    figure: Callable[[Records], float | None]
    form: str = ".2f"

    def line(self, found: Records) -> str:
        """Of the table: a processor has a figure of its own."""
        goal = f"{'≤' if self.most else '≥'} {self.limit:{self.form}}"
        places = processors(found) if self.where.startswith("CPU") else [""]
        values = {place: self.figure(only(found, place)) for place in places}
        values = {place: value for place, value in values.items() if value is not None}
        if not values:
            return f"| {self.where} | {self.what} | {goal} | {NOT_MEASURED} | |"
        told = "; ".join(f"{value:{self.form}}{f' ({short(place)})' * bool(place)}" for place, value in values.items())
        met = {value <= self.limit if self.most else value >= self.limit for value in values.values()}
        verdict = "met" if met == {True} else "not met" if met == {False} else "met on one"
        return f"| {self.where} | {self.what} | {goal} | {told} | {verdict} |"


def processors(found: Records) -> list[str]:
    """The machines whose CPU was measured, in the order of their first record."""
    rows = [row for rows in found.values() for row in rows if row.get("platform", "cpu") == "cpu"]
    return list(dict.fromkeys(row.get("machine", "") for row in rows)) or [""]


def only(found: Records, place: str) -> Records:
    """Records of one machine; with '' all."""
    return {kind: [row for row in rows if not place or row.get("machine") == place] for kind, rows in found.items()}


def short(place: str) -> str:
    """2 x Intel(R) Xeon(R) Processor as Intel Xeon."""
    return place.partition(" x ")[2].replace("(R)", "").replace(" Processor", "")


def _last_run(found: Records, config: str, dtype: str, platform: str) -> list[Record]:
    """Rows of the newest run of a configuration, sweeps apart; those that failed are left out."""
    rows = [
        row for row in found.get("train", [])
        if (row["config"], row["dtype"], row.get("platform", "cpu")) == (config, dtype, platform) and is_plain(row)
    ]  # fmt: skip
    rows = [row for row in rows if run_of(row) == run_of(rows[-1])]
    return [row for row in rows if "error" not in row]


def is_plain(row: Record) -> bool:
    """Of the configuration as it stands: no point of a sweep, no other size, no rehearsal."""
    return not any(row.get(name) for name in ("sweep", "asked_batch", "asked_layers", "rehearsed"))


def run_of(row: Record) -> str:
    """What rows of one run have in common."""
    return row.get("run") or row["when"]


def kind_of(row: Record) -> str:
    """lmkit or peer."""
    return row.get("kind") or ("peer" if "torch" in row.get("versions", {}) else "lmkit")


def against_peer(config: str, dtype: str, platform: str, key: str, best: Callable) -> Callable[[Records], float | None]:
    """lmkit's best over the peers' best."""

    def figure(found: Records) -> float | None:
        rows = _last_run(found, config, dtype, platform)
        ours, theirs = (
            [row[key] for row in rows if kind_of(row) == kind and row.get(key)] for kind in ("lmkit", "peer")
        )
        return best(ours) / best(theirs) if ours and theirs else None

    return figure


def of_row(config: str, dtype: str, platform: str, key: str, best: Callable) -> Callable[[Records], float | None]:
    """lmkit's best of a figure."""

    def figure(found: Records) -> float | None:
        values = [row[key] for row in _last_run(found, config, dtype, platform) if kind_of(row) == "lmkit"
                  and row.get(key)]  # fmt: skip
        return best(values) if values else None

    return figure


def newest_of(kind: str, key: str, best: Callable = max, **same: Any) -> Callable[[Records], float | None]:
    """Of the newest run among records of a kind with these values."""

    def figure(found: Records) -> float | None:
        rows = [row for row in found.get(kind, []) if all(row.get(name) == value for name, value in same.items())]
        rows = [row for row in rows if not row.get("rehearsed")]
        values = [row[key] for row in rows if run_of(row) == run_of(rows[-1]) and row.get(key) is not None]
        return best(values) if values else None

    return figure


GOALS: Sequence[Goal] = (
    Goal("CPU fp32, S", "CPU s/step, lmkit / PyTorch", 0.6, True, against_peer("S", "fp32", "cpu", "cpu_s", min)),
    Goal("CPU fp32, M", "CPU s/step, lmkit / PyTorch", 0.6, True, against_peer("M", "fp32", "cpu", "cpu_s", min)),
    Goal("CPU bf16, S", "CPU s/step, lmkit / PyTorch", 1.3, True, against_peer("S", "bf16", "cpu", "cpu_s", min)),
    Goal("CPU", "gpt2_124m, time to first step, cold, s", 20, True,
         newest_of("compile", "cold_s", platform="cpu"), ".1f"),
    Goal("CPU", "gpt2_124m, time to first step, warm, s", 6, True,
         newest_of("compile", "warm_s", platform="cpu"), ".1f"),
    Goal("CPU", "compile time, 96 layers / 12", 1.3, True, newest_of("compile", "growth", platform="cpu")),
    Goal("CPU fp32, S", "peak memory, lmkit / PyTorch", 1.0, True,
         against_peer("S", "fp32", "cpu", "peak_rss_mb", min)),
    Goal("CPU fp32, M", "peak memory, lmkit / PyTorch", 1.0, True,
         against_peer("M", "fp32", "cpu", "peak_rss_mb", min)),
    Goal("H200, gpt2_124m", "MFU, bf16, sequence 1,024", 0.5, False, of_row("G124", "bf16", "gpu", "mfu", max), ".0%"),
    Goal("H200, gpt3_1b3", "MFU, bf16, sequence 2,048", 0.62, False, of_row("G1B3", "bf16", "gpu", "mfu", max), ".0%"),
    Goal("H200, gpt2_124m", "tokens/s, lmkit / PyTorch", 1.1, False,
         against_peer("G124", "bf16", "gpu", "tokens_per_sec", max)),
    Goal("H200, gpt3_1b3", "tokens/s, lmkit / PyTorch", 1.1, False,
         against_peer("G1B3", "bf16", "gpu", "tokens_per_sec", max)),
    Goal("H200, gpt3_1b3", "decode, batch 1, share of the bandwidth limit", 0.6, False,
         newest_of("decode", "share", batch=1, platform="gpu"), ".0%"),
    Goal("H200, gpt3_1b3", "decode, batch 64, share of the bandwidth limit", 0.6, False,
         newest_of("decode", "share", batch=64, platform="gpu"), ".0%"),
    *(Goal(where, f"share of a step {what}", 0.01, True, newest_of("idle", key, platform=platform), ".2%")
      for where, platform in (("CPU", "cpu"), ("H200", "gpu"))
      for what, key in (("waiting for input", "input_share"), ("in logging", "logging_share"))),
    *(Goal(where, "gpt2_124m: a save blocks the loop for, s", 0.5, True,
           newest_of("idle", "save_blocks_s", model="gpt2_124m", platform=platform))
      for where, platform in (("CPU", "cpu"), ("H200", "gpu"))),
    Goal("H200", "loss, gradients, cached text: error over tolerance", 1.0, True,
         newest_of("check", "over_tolerance", platform="gpu")),
)  # fmt: skip


def goal_table(found: Records) -> str:
    """In Markdown."""
    lines = ["| where | figure | goal | measured | |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(goal.line(found) for goal in GOALS)]) + "\n"
