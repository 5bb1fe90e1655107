"""The table of decoding beside peers, from the records of tools/bench_decode_peers.py."""

from speed.records import Record, newest
from speed.tables import NOT_MEASURED


def table(rows: list[Record]) -> str:
    """Markdown; the ratio is to llama.cpp in float32 with as many rows, in CPU seconds."""
    head = ("row", "weights", "batch", "tokens/s", "tokens/CPU s (min-max)", "/ llama.cpp F32", "share of the limit")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    like = {row["batch"]: row["cpu_s"] for row in rows if (row["name"], row["weights"]) == ("llama.cpp", "F32")}
    for row in rows:
        ratio = f"{like[row['batch']] / row['cpu_s']:.2f}" if row["batch"] in like else NOT_MEASURED
        span = f"{row['batch'] / row['cpu_s_max']:.1f}-{row['batch'] / row['cpu_s_min']:.1f}"
        lines.append(
            f"| {row['name']} | {row['weights']} | {row['batch']} | {row['tokens_per_sec']:.1f} | "
            f"{row['tokens_per_cpu_sec']:.1f} ({span}) | {ratio} | {row['share']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def tables(found: list[Record]) -> str:
    """The newest rows of each machine and model, with what they have in common above them."""
    parts = []
    for model, machine in dict.fromkeys((row["model"], row["machine"]) for row in found):
        mine = [row for row in found if (row["model"], row["machine"]) == (model, machine)]
        rows = sorted(newest(mine, "name", "weights", "batch"), key=lambda row: row["batch"])
        last = mine[-1]
        rate = f"memory {max(row['bytes_per_sec'] for row in rows) / 1e9:.1f} GB/s"
        tokens = f"{last['new']} tokens after {last['prompt']}"
        parts.append(f"**{model}**, {tokens}, one core of {machine}, {last['when']}, {rate}\n\n{table(rows)}")
    return "\n".join(parts) or f"{NOT_MEASURED}\n"
