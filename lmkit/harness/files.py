"""What a harness run leaves: results.json and samples_<task>.jsonl, as lm-eval writes them."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.files import write_text
from lmkit.metrics.bootstrap import Figure

Json = dict[str, Any]


def plain(value: Any) -> Any:
    """What JSON does not know, as lm-eval writes it."""
    if isinstance(value, np.generic):
        return value.item()
    return sorted(value) if isinstance(value, set) else str(value)


def figure_row(metric: str, one: Figure) -> Json:
    """A figure in lm-eval's layout, and its interval, if it has one."""
    row: Json = {f"{metric},none": one.value, f"{metric}_stderr,none": one.stderr}
    return row if math.isnan(one.low) else row | {f"{metric}_interval,none": [one.low, one.high]}


def write_results(folder: Path, results: Json) -> None:
    """results.json in lm-eval's layout, without the samples."""
    kept = {name: value for name, value in results.items() if name != "samples"}
    write_text(folder / "results.json", json.dumps(kept, indent=2, default=plain, ensure_ascii=False) + "\n")


def write_samples(folder: Path, samples: dict[str, list[Json]]) -> None:
    """samples_<task>.jsonl: every prompt, answer and score, a line an item."""
    for task, rows in samples.items():
        lines = [json.dumps(_sample(row), default=plain, ensure_ascii=False) for row in rows]
        write_text(folder / f"samples_{task.replace('/', '_')}.jsonl", "".join(f"{line}\n" for line in lines))


def _sample(row: Json) -> Json:
    """With arguments by name and answers as strings: a column of a data set has one type."""
    row = copy.copy(row)
    row["arguments"] = {
        f"gen_args_{number}": {f"arg_{place}": value for place, value in enumerate(arguments)}
        for number, arguments in enumerate(row["arguments"])
    }
    row["resps"], row["filtered_resps"], row["target"] = _words(row["resps"]), _words(row["filtered_resps"]), str(
        row["target"]
    )  # fmt: skip
    return row


def _words(value: Any) -> Any:
    return [_words(one) for one in value] if isinstance(value, list | tuple) else str(value)
