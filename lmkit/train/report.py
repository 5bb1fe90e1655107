"""The run report: one HTML page, made from the files of a run's directory, that asks for nothing from outside.

What is missing or half-written is left out and named at the foot of the page: the report of a run that crashed is the
one most needed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmkit.files import write_text
from lmkit.pages.figures import Columns
from lmkit.pages.run import RunRecord, draw_run, finite


def write_report(run_dir: Path) -> Path:
    """Writes run_dir/report.html from those files of the run directory that there are, and returns its path."""
    path = run_dir / "report.html"
    write_text(path, draw_run(read_record(run_dir)))
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
            values.append(finite(value))
    never = [name for name, (_, values) in columns.items() if all(v is None for v in values)]
    problems.extend(f"{name}: no finite value" for name in never)
    return {name: column for name, column in columns.items() if name not in never}


def _read_samples(path: Path, problems: list[str]) -> list[tuple[int, str, str]]:
    """(step, prompt, text) of each sample; those after a step that was resumed from are void."""
    kept: list[tuple[int, str, str]] = []
    for step, row in _read_rows(path, problems):
        while kept and kept[-1][0] >= step:
            kept.pop()
        kept.append((step, str(row.get("prompt") or ""), str(row.get("text") or "")))
    return kept


def read_record(run_dir: Path) -> RunRecord:
    """What the files of a run directory say, as far as they can be read."""
    problems: list[str] = []
    receipt, summary = (_read_dict(run_dir / name, problems) for name in ("receipt.json", "summary.json"))
    columns = _read_metrics(run_dir / "metrics.jsonl", problems)
    samples = _read_samples(run_dir / "samples.jsonl", problems)
    config = _read_text(run_dir / "config.yaml", problems)
    confusion = _read_dict(run_dir / "confusion.json", []) if (run_dir / "confusion.json").is_file() else {}
    return RunRecord(run_dir.resolve().name, receipt, summary, columns, samples, config, confusion, problems)
