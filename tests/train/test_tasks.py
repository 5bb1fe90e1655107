"""Tasks of lm-eval on the way: logged, in the report, what is best; before anything is made, a mistake in one line."""

import json
from pathlib import Path

import pytest
from harness.local_tasks import write_tasks

from lmkit.config.entry import run_verb
from lmkit.tracker import read_rows

pytest.importorskip("lm_eval", reason="LOUD: train.eval_tasks is not tested; pip install 'lmkit[evals]'")


def train(*words: str) -> int:
    return run_verb("train", "lmkit.train.main:train", "about", list(words), many=True)


def test_tasks_are_scored_on_the_way(tmp_path: Path) -> None:
    """At each evaluation, on a mesh, bounded; the best checkpoint is the one of the task's figure."""
    tasks = write_tasks(tmp_path / "tasks", count=12, words=3)
    run = tmp_path / "run"
    words = [
        "+experiment=gpt_tiny", f"run.dir={run}", "train.steps=4", "train.eval_every_steps=2", "optim.warmup_steps=1",
        "train.sample_tokens=0", "mesh.data=4", "mesh.tensor=2", "train.eval_batches=1", "data=text_files",
        f"data.paths=[{tasks}/*.jsonl]", "data.text_key=question", "data.holdout_every=3",
        "train.eval_tasks=[pick]", "train.eval_limit=5", f"evaluate.include={tasks}",
        "checkpoint.best_metric=eval/tasks/pick/acc", "checkpoint.best=highest",
    ]  # fmt: skip
    assert train(*words) == 0
    rows = [row for row in read_rows(run / "metrics.jsonl") if "eval/tasks/pick/acc" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(row["eval/tasks/pick/acc"] * 5 == pytest.approx(round(row["eval/tasks/pick/acc"] * 5)) for row in rows)
    assert all(row["eval/tasks/sec"] > 0 for row in rows)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best/eval/tasks/pick/acc"] == max(row["eval/tasks/pick/acc"] for row in rows)
    assert "Tasks: acc" in (run / "report.html").read_text()


def test_an_unknown_task_leaves_no_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tasks, run = write_tasks(tmp_path / "tasks"), tmp_path / "run"
    words = ["+experiment=gpt_tiny", f"run.dir={run}", "train.eval_tasks=[pik]", f"evaluate.include={tasks}"]
    assert train(*words) == 2
    assert "train.eval_tasks: no task 'pik'. Did you mean 'pick'?" in capsys.readouterr().err
    assert not run.exists()
