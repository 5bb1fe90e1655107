"""The page of a run: figures, curves, classes, planned beside measured, samples, facts, files."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lmkit.console import duration, size
from lmkit.pages.chart import SCRIPT, compact, draw_charts, escape, exact
from lmkit.pages.figures import Columns, charts_of, confusion_table, finite, planned_table
from lmkit.pages.page import frame

MOST_SAMPLES, MOST_SAMPLE_CHARS = 50, 20_000  # earlier ones; more would outweigh the rest of the page


class RunRecord(NamedTuple):
    """What a run has written so far; empty where there is nothing."""

    name: str  # of its directory
    receipt: dict[str, Any]
    summary: dict[str, Any]
    columns: Columns
    samples: list[tuple[int, str, str]]  # (step, prompt, text)
    config: str
    confusion: dict[str, Any]
    problems: list[str]  # files that could not be read, and why


def draw_run(record: RunRecord) -> str:
    """The page of a run."""
    receipt, summary, columns = record.receipt, record.summary, record.columns
    figures, points = draw_charts(charts_of(columns))
    run, devices = _group(receipt, "run"), _group(receipt, "devices")
    title = run.get("name") or record.name
    status = summary.get("status") or ("finished" if summary else "no summary yet")
    where = f"{devices.get('count', '?')} × {devices.get('kind', '?')}" if devices else ""
    about = " · ".join(re.sub(r"(\d)T(\d)", r"\1 \2", escape(fact)) for fact in (run.get("started"), where) if fact)
    params = finite(_group(receipt, "model").get("params"))
    waiting = "" if summary else "<p>The run is under way or ended early: what follows is the latest it logged.</p>"
    problems = "Not in this report: " + "; ".join(record.problems) if record.problems else ""
    badge = f'<span class="badge{" good" * (status == "finished")}">{escape(status)}</span>'
    body = f"""<header><h1>{escape(title)} {badge}</h1>
<p class="soft">{about}</p>{waiting}</header>
<div class="cards">{_cards(_headline(summary, columns) | {"params": params}, columns)}</div>
<h2>Curves</h2>
<div class="charts">{figures or "No metrics yet."}</div>
{confusion_table(record.confusion)}
{planned_table(_group(receipt, "expected"), _group(receipt, "planned"), _group(receipt, "measured"), summary)}
{_samples(record.samples)}
{_facts(receipt)}
<h2>Files</h2>
{_fold("Configuration", record.config)}{_fold("Receipt", json.dumps(receipt, indent=2) if receipt else "")}
<footer>{escape(problems)}</footer>"""
    return frame(title, body, script=SCRIPT, points=points)


def _group(tree: dict[str, Any], name: str) -> dict[str, Any]:
    value = tree.get(name)
    return value if isinstance(value, dict) else {}


def _headline(summary: dict[str, Any], columns: Columns) -> dict[str, float | None]:
    """The figures of the summary, and where it has none the latest of the metrics."""
    known = {name: [v for v in values if v is not None] for name, (_, values) in columns.items()}
    latest: dict[str, float | None] = {name.removeprefix("train/"): values[-1] for name, values in known.items()}
    if "time" in columns:
        latest["wall_sec"] = known["time"][-1] - known["time"][0]
    latest["steps"] = max((steps[-1] for steps, _ in columns.values()), default=None)
    return latest | {name: value for name in summary if (value := finite(summary[name])) is not None}


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
        ("Wall time", "wall_sec", duration),
        ("Tokens per second", "tokens_per_sec", exact),
        ("MFU", "mfu", "{:.1%}".format),
        ("Parameters", "params", lambda count: compact(count, 3)),
    ):
        value, note = figures.get(name), notes.get(name, "")
        if value is not None:
            cards.append(f'<dl class="card"><dt>{title}</dt><dd>{write(value)}</dd><dd>{note}</dd></dl>')
    return "\n".join(cards)


def _facts(receipt: dict[str, Any]) -> str:
    rows = []
    for name, group in receipt.items():
        facts = [f'<span class="soft">{escape(key)}</span> {escape(value)}' for key, value in _flat(group)]
        if facts and name not in ("expected", "planned", "measured"):  # they have a table of their own
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
    if (number := finite(value)) is not None:
        text = size(number) if name.endswith("bytes") and number >= 2**20 else exact(number)
    text = f"{len(text.splitlines()):,} lines" if "\n" in text else text  # a diff
    most = 120 if " " in text else 40  # of a hash less is enough; the receipt has it whole
    yield name, text if len(text) <= most else f"{text[:30]}…"


def _samples(samples: list[tuple[int, str, str]]) -> str:
    if not samples:
        return ""
    *earlier, last = samples
    shown = earlier[:: -(math.ceil(len(earlier) / MOST_SAMPLES) or 1)]
    items = "".join(f"<details><summary>Step {one[0]:,}</summary>{_sample(one)}</details>\n" for one in shown)
    number = f"{len(shown)} of {len(earlier):,}" if len(shown) < len(earlier) else len(earlier)
    more = f"<details><summary>Earlier samples ({number})</summary>\n{items}</details>" if shown else ""
    return f'<h2>Samples</h2>\n<div class="sheet"><p class="soft">Step {last[0]:,}</p>{_sample(last)}{more}</div>'


def _sample(sample: tuple[int, str, str]) -> str:
    prompt, text = (part[:MOST_SAMPLE_CHARS] for part in sample[1:])
    return f"<pre><mark>{escape(prompt)}</mark>{escape(text.removeprefix(prompt))}</pre>"


def _fold(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>\n" if text else ""
