"""The run report: one HTML page, made from the files of a run's directory, that asks for nothing from outside.

What is missing or half-written is left out and named at the foot of the page: the report of a run that crashed is the
one most needed.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmkit.files import write_text
from lmkit.train.chart import CHART_STYLE, SCRIPT, compact, draw_charts, escape, exact
from lmkit.train.pictures import GIB, Columns, charts_of, confusion_table, planned_table
from lmkit.train.style import STYLE

MOST_SAMPLES, MOST_SAMPLE_CHARS = 50, 20_000  # earlier ones; more would outweigh the rest of the page


def write_report(run_dir: Path) -> Path:
    """Writes run_dir/report.html from those files of the run directory that there are, and returns its path."""
    path = run_dir / "report.html"
    write_text(path, _page(run_dir))
    return path


def _read_text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror}")
        return ""


def _read_dict(path: Path, problems: list[str]) -> dict[str, Any]:
    text = _read_text(path, problems)
    try:
        return dict(json.loads(text or "{}"))
    except (ValueError, TypeError):
        problems.append(f"{path.name}: not a whole JSON object")
        return {}


def _read_rows(path: Path, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, row) of each whole line. The last one may be cut, for the run may be writing it."""
    *lines, last = _read_text(path, problems).split("\n")  # splitlines would also split at U+2028 in a sample
    bad = 0
    for line in filter(str.strip, [*lines, last]):
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, TypeError, KeyError, OverflowError):
            bad += line is not last
        else:
            yield step, row
    if bad:
        problems.append(f"{path.name}: {bad:,} unreadable lines")


def _number(value: Any) -> float | None:
    """A finite number, or None. Above 1e300 sums and differences would overflow."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 else None


def _read_metrics(path: Path, problems: list[str]) -> Columns:
    columns: Columns = {}
    for step, row in _read_rows(path, problems):
        for name, value in row.items():
            if name == "step" or isinstance(value, str | list | dict):
                continue
            steps, values = columns.setdefault(name, ([], []))
            while steps and steps[-1] >= step:  # resumed from an earlier checkpoint: what followed it is void
                steps.pop()
                values.pop()
            steps.append(step)
            values.append(_number(value))
    never = [name for name, (_, values) in columns.items() if all(v is None for v in values)]
    problems.extend(f"{name}: no finite value" for name in never)
    return {name: column for name, column in columns.items() if name not in never}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _size(count: float) -> str:
    return f"{count / GIB:.3g} GiB" if count >= GIB else f"{count / 2**20:.3g} MiB"


def _group(tree: dict[str, Any], name: str) -> dict[str, Any]:
    value = tree.get(name)
    return value if isinstance(value, dict) else {}


def _headline(summary: dict[str, Any], columns: Columns) -> dict[str, float | None]:
    """The figures of the summary, and where it has none the latest of the metrics."""
    finite = {name: [v for v in values if v is not None] for name, (_, values) in columns.items()}
    latest: dict[str, float | None] = {name.removeprefix("train/"): values[-1] for name, values in finite.items()}
    if "time" in columns:
        latest["wall_sec"] = finite["time"][-1] - finite["time"][0]
    latest["steps"] = max((steps[-1] for steps, _ in columns.values()), default=None)
    return latest | {name: value for name in summary if (value := _number(summary[name])) is not None}


def _cards(figures: dict[str, float | None], columns: Columns) -> str:
    steps, values = columns.get("eval/bits_per_byte", ([], []))
    best = min(((v, s) for s, v in zip(steps, values, strict=True) if v is not None), default=None)
    loss, tokens, params = (figures.get(name) for name in ("eval/loss", "tokens", "params"))
    of_tokens = figures.get("eval/bits_per_byte") or figures.get("eval/perplexity")
    notes = {
        "eval/bits_per_byte": f"best {best[0]:.4f} at step {best[1]:,}" if best else "",
        "eval/loss": f"perplexity {exact(math.exp(min(loss, 700)))}" if loss and of_tokens else "",
        "tokens": f"{exact(tokens / params)} per parameter" if tokens and params else "",
    }
    cards = []
    for title, name, write in (
        ("Held-out bits per byte", "eval/bits_per_byte", "{:.4f}".format),
        ("Held-out loss", "eval/loss", "{:.4f}".format),
        ("Held-out accuracy", "eval/accuracy", "{:.2%}".format),
        ("Held-out F1", "eval/f1", "{:.4f}".format),
        ("Held-out R²", "eval/r2", "{:.4f}".format),
        ("Held-out BLEU", "eval/bleu", "{:.2f}".format),
        ("Held-out word errors", "eval/wer", "{:.2%}".format),
        ("Steps", "steps", "{:,.0f}".format),
        ("Tokens", "tokens", lambda count: compact(count, 3)),
        ("Wall time", "wall_sec", _duration),
        ("Tokens per second", "tokens_per_sec", exact),
        ("MFU", "mfu", "{:.1%}".format),
        ("Parameters", "params", lambda count: compact(count, 3)),
    ):
        value, note = figures.get(name), notes.get(name, "")
        if value is not None:
            cards.append(f'<dl class="card"><dt>{title}</dt><dd>{write(value)}</dd><dd>{note}</dd></dl>')
    return "\n".join(cards)


def _expected(promised: dict[str, Any], summary: dict[str, Any]) -> str:
    rows = []
    for title, before, after, write in (
        ("Wall time", "wall_sec", "wall_sec", _duration),
        ("Tokens per second", "tokens_per_sec", "tokens_per_sec", exact),
        ("Peak memory", "memory_bytes", "peak_memory_bytes", _size),
    ):
        told, seen = _number(promised.get(before)), _number(summary.get(after))
        if told:
            cells = (
                write(told),
                "–" if seen is None else write(seen),
                "–" if seen is None else exact(seen / told),
            )
            rows.append(f'<tr><th scope="row">{title}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Figure", "Expected", "Measured", "Ratio"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h2>Expected and measured</h2>\n<div class="sheet">{table}</div>' if rows else ""


def _facts(receipt: dict[str, Any]) -> str:
    rows = []
    for name, group in receipt.items():
        facts = [f'<span class="soft">{escape(key)}</span> {escape(value)}' for key, value in _flat(group)]
        if facts and name not in ("expected", "planned", "measured"):  # they have tables of their own
            cell = " ".join(f'<span class="fact">{fact}</span>' for fact in facts)
            rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{cell}</td></tr>')
    return f'<h2>Facts</h2>\n<div class="sheet"><table>{"".join(rows)}</table></div>' if rows else ""


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, short text) of every leaf."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
        return
    text = value if isinstance(value, str) else json.dumps(value)
    if (number := _number(value)) is not None:
        text = _size(number) if name.endswith("bytes") and number >= 2**20 else exact(number)
    text = f"{len(text.splitlines()):,} lines" if "\n" in text else text  # a diff
    most = 120 if " " in text else 40  # of a hash less is enough; the receipt has it whole
    yield name, text if len(text) <= most else f"{text[:30]}…"


def _samples(path: Path, problems: list[str]) -> str:
    kept: list[tuple[int, str]] = []
    for step, row in _read_rows(path, problems):
        while kept and kept[-1][0] >= step:  # void, as in the metrics
            kept.pop()
        prompt, text = (str(row.get(key) or "")[:MOST_SAMPLE_CHARS] for key in ("prompt", "text"))
        kept.append((step, f"<pre><mark>{escape(prompt)}</mark>{escape(text.removeprefix(prompt))}</pre>"))
    if not kept:
        return ""
    *earlier, (step, last) = kept
    shown = earlier[:: -(math.ceil(len(earlier) / MOST_SAMPLES) or 1)]
    items = "".join(f"<details><summary>Step {step:,}</summary>{text}</details>\n" for step, text in shown)
    number = f"{len(shown)} of {len(earlier):,}" if len(shown) < len(earlier) else len(earlier)
    more = f"<details><summary>Earlier samples ({number})</summary>\n{items}</details>"
    return f'<h2>Samples</h2>\n<div class="sheet"><p class="soft">Step {step:,}</p>{last}{more if shown else ""}</div>'


def _fold(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>\n" if text else ""


def _page(run_dir: Path) -> str:
    problems: list[str] = []
    receipt, summary = (_read_dict(run_dir / name, problems) for name in ("receipt.json", "summary.json"))
    columns = _read_metrics(run_dir / "metrics.jsonl", problems)
    samples, config = _samples(run_dir / "samples.jsonl", problems), _read_text(run_dir / "config.yaml", problems)
    figures, points = draw_charts(charts_of(columns))
    # The one script that the browser may run, should a text ever slip through unescaped.
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    run, devices = _group(receipt, "run"), _group(receipt, "devices")
    title = run.get("name") or run_dir.resolve().name
    status = summary.get("status") or ("finished" if summary else "no summary yet")
    where = f"{devices.get('count', '?')} × {devices.get('kind', '?')}" if devices else ""
    about = " · ".join(re.sub(r"(\d)T(\d)", r"\1 \2", escape(fact)) for fact in (run.get("started"), where) if fact)
    params = _number(_group(receipt, "model").get("params"))
    waiting = "" if summary else "<p>The run is under way or ended early: what follows is the latest it logged.</p>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}{CHART_STYLE}</style>
</head>
<body>
<main>
<header><h1>{escape(title)} <span class="badge{" good" * (status == "finished")}">{escape(status)}</span></h1>
<p class="soft">{about}</p>{waiting}</header>
<div class="cards">{_cards(_headline(summary, columns) | {"params": params}, columns)}</div>
<h2>Curves</h2>
<div class="charts">{figures or "No metrics yet."}</div>
{confusion_table(run_dir / "confusion.json")}
{_expected(_group(receipt, "expected"), summary)}
{planned_table(_group(receipt, "planned"), _group(receipt, "measured"))}
{samples}
{_facts(receipt)}
<h2>Files</h2>
{_fold("Configuration", config)}{_fold("Receipt", json.dumps(receipt, indent=2) if receipt else "")}
<footer>{escape("Not in this report: " + "; ".join(problems) if problems else "")}</footer>
</main>
<script type="application/json" id="points">{points}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""
