"""Puts what was measured into docs/performance.md: the goals, and the newest rows of every benchmark.

    python tools/bench_docs.py            # between the markers of the page, from experiments/benchmarks/*.jsonl

What has no figure says "not measured". tests/tools holds the page against the files.
"""

import argparse
import os
import re
from pathlib import Path

from speed import ahead, decoding
from speed.floors import floors_of
from speed.goals import goal_table, is_plain, kind_of, run_of
from speed.model import SHAPES, experiment_of
from speed.records import BENCHMARKS, ROOT, Record, newest, records
from speed.tables import NOT_MEASURED, markdown

PAGE = ROOT / "docs" / "performance.md"
KINDS = ("train", "compile", "idle", "decode", "rates", "check")
EXPECTED = [  # config, dtype, platform: which a reader looks for, measured or not
    ("S", "fp32", "cpu"), ("M", "fp32", "cpu"), ("S", "bf16", "cpu"), ("G124", "bf16", "gpu"), ("G1B3", "bf16", "gpu"),
]  # fmt: skip
_MARKED = re.compile(r"(<!-- tools/bench_docs\.py: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: str, folder: Path = BENCHMARKS) -> str:
    """The page with every marked part made anew."""
    found = {kind: records(folder, kind) for kind in KINDS}
    parts = {"goals": goal_table, "rows": rows_table, "sweeps": sweep_tables, "floors": lambda _: floor_table()}
    parts |= {"others": other_tables, "aot": lambda _: ahead.table(records(folder, "aot"))}
    parts |= {"decoding": lambda _: decoding.tables(records(folder, "decode_peers"))}
    return _MARKED.sub(lambda match: f"{match[1]}\n{parts[match[2]](found)}\n{match[3]}", page)


def rows_table(found: dict[str, list[Record]]) -> str:
    """The newest run of each configuration on each machine, and those that a reader looks for."""
    rows = [row for row in found["train"] if is_plain(row)]
    keys = dict.fromkeys([*EXPECTED, *(_key(row) for row in rows)])
    return "\n".join(_group(key, place, rows) for key in keys for place in _places(key, rows))


def _key(row: Record) -> tuple[str, str, str]:
    return row["config"], row["dtype"], row.get("platform", "cpu")


def _places(key: tuple[str, str, str], rows: list[Record]) -> list[str]:
    """The machines that a configuration was measured on; '' where there is none."""
    return list(dict.fromkeys(row.get("machine", "") for row in rows if _key(row) == key)) or [""]


def _group(key: tuple[str, str, str], place: str, rows: list[Record]) -> str:
    config, dtype, platform = key
    mine = [row for row in rows if _key(row) == key and row.get("machine", "") == place]
    mine = [row for row in mine if run_of(row) == run_of(mine[-1])]
    title = f"{config}, {dtype}, {platform.upper()}"
    if not mine:
        return f"**{title}**: {NOT_MEASURED}\n"
    last = mine[-1]
    peers = [row["cpu_s"] for row in mine if kind_of(row) == "peer" and "error" not in row]
    for row in mine:
        if peers and row.get("ratio") is None and "error" not in row:
            row["ratio"] = row["cpu_s"] / min(peers)
    where = last["machine"] if platform == "cpu" else last.get("device")
    versions = {name: version for row in mine for name, version in row.get("versions", {}).items()}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    head = f"**{title}**, {where}, {last['threads'] or 'all'} CPUs, {last['when']}, {told}\n"
    return f"{head}\n{markdown(newest(mine, 'name'))}"


def sweep_tables(found: dict[str, list[Record]]) -> str:
    """The newest run of each sweep."""
    rows = [row for row in found["train"] if row.get("sweep") and not row.get("rehearsed")]
    groups = dict.fromkeys((row["sweep"], row.get("platform", "cpu")) for row in rows)
    parts = []
    for sweep, platform in groups:
        mine = [row for row in rows if (row["sweep"], row.get("platform", "cpu")) == (sweep, platform)]
        mine = newest([row for row in mine if run_of(row) == run_of(mine[-1])], "name", "config", "dtype")
        last = mine[-1]
        title = f"**{sweep}**, {last['config'] if sweep != 'model' else 'models'}, {platform.upper()}, {last['when']}"
        parts.append(f"{title}\n\n{markdown(mine)}")
    return "\n".join(parts) or f"{NOT_MEASURED}\n"


def other_tables(found: dict[str, list[Record]]) -> str:
    """Compile time, idle time, decoding, rates, checks: the newest of each, key by key."""
    lines = ["| what | where | figures |", "|---|---|---|"]
    for kind in KINDS[1:]:
        mine = [row for row in found[kind] if not row.get("rehearsed")]
        for row in newest(mine, "platform", "machine", "name", "batch", "model"):
            shown = "; ".join(f"{name} {_plain(value)}" for name, value in row["figures"].items())
            lines.append(f"| {kind}: {row['name']} | {row.get('device') or row['machine']}, {row['when']} | {shown} |")
        if not mine:
            lines.append(f"| {kind} | | {NOT_MEASURED} |")
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def floor_table() -> str:
    """What a step of each configuration must compute and move, from the configuration alone."""
    head = ("config", "dtype", "tokens a step", "TFLOP", "and again with remat=names", "GB moved", "FLOPs a byte")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for config in (name for name in SHAPES if name != "T"):
        dtype, platform = ("fp32", "cpu") if config in ("S", "M") else ("bf16", "gpu")
        experiment = experiment_of(config, dtype, [])
        floors, again = (
            floors_of(experiment_of(config, dtype, keys), platform) for keys in ([], ["model.remat=names"])
        )
        tokens = experiment.train.batch_size * experiment.data.seq_len
        lines.append(
            f"| {config} | {dtype} | {tokens:,} | {floors.flops / 1e12:.3f} | {again.repeated / 1e12:.3f} | "
            f"{floors.num_bytes / 1e9:.2f} | {floors.intensity:.0f} |"
        )
    return "\n".join(lines) + "\n"


def update() -> None:
    """Writes the page anew."""
    PAGE.write_text(render(PAGE.read_text()))
    print(PAGE)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"  # it runs nothing
    update()


if __name__ == "__main__":
    main()
