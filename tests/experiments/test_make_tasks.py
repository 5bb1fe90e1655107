"""The tasks of experiments/evaluate_small: four choices, one of them right, the same each time."""

import importlib.util
import json
from pathlib import Path

from helpers import ROOT

spec = importlib.util.spec_from_file_location("make_tasks", ROOT / "experiments" / "evaluate_small" / "make_tasks.py")
assert spec is not None
assert spec.loader is not None
make_tasks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_tasks)


def test_the_tasks(tmp_path: Path) -> None:
    texts = [Path(json.__file__).read_text(), Path(importlib.util.__file__).read_text()]
    for place in ("a", "b"):
        make_tasks.write_tasks(tmp_path / place, texts, 20)
    for name in ("cloze", "next_line", "brackets", "copying", "arithmetic"):
        file = f"{name}.jsonl"
        assert (tmp_path / "a" / file).read_text() == (tmp_path / "b" / file).read_text()
        rows = [json.loads(line) for line in (tmp_path / "a" / file).read_text().splitlines()]
        assert len(rows) == 20
        for row in rows:
            right = row["choices"][row["answer"]]
            assert len(set(row["choices"])) == 4
            if name == "arithmetic":
                assert eval(row["question"].splitlines()[-1].removeprefix("assert ") + right)
            elif name in ("cloze", "next_line"):
                assert any(row["question"] + right in text or name == "next_line" for text in texts)
            elif name == "brackets":
                opened = [c for c in row["question"] if c in "([{"]
                assert right == "".join({"(": ")", "[": "]", "{": "}"}[c] for c in reversed(opened))
