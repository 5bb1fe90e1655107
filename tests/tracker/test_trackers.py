"""Trackers: the record is complete, extras are asked for by name, a resume does not repeat rows."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lmkit.config import ConfigError
from lmkit.config.sections.tracker import TrackerConfig
from lmkit.tracker import build_trackers, check_trackers, forget_after, last_figures, read_rows


def test_rows_are_on_disk_at_once_and_nan_is_null(tmp_path: Path) -> None:
    trackers = build_trackers(TrackerConfig(names=[]), tmp_path, {})
    trackers.log(1, {"train/loss": 2.5, "train/grad_norm": float("nan")})
    trackers.text(1, "sample", "a\nb")
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["step"] == 1
    assert row["train/loss"] == 2.5
    assert row["train/grad_norm"] is None
    assert read_rows(tmp_path / "samples.jsonl") == [{"step": 1, "name": "sample", "text": "a\nb"}]


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_forget_after_drops_what_will_be_logged_again(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(lines + '{"cut')
    forget_after(tmp_path, 2)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]


def test_the_last_figures_of_a_run(tmp_path: Path) -> None:
    assert last_figures(tmp_path) == {}
    rows = [{"step": 1, "time": 1.0, "a/x": 1, "a/y": 2}, {"step": 2, "a/x": 3}, {"step": 2, "a/y": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert last_figures(tmp_path) == {"a/x": 3, "a/y": 2}


def test_tensorboard_writes_events(tmp_path: Path) -> None:
    trackers = build_trackers(TrackerConfig(), tmp_path, {"a": 1})
    trackers.log(1, {"train/loss": 2.5})
    trackers.text(1, "sample", "hello")
    trackers.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_tensorboard_needs_no_torch_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    say = f"import sys, pathlib; sys.path.insert(0, {str(tmp_path)!r}); from lmkit.tracker.trackers import TensorBoard;"
    say += f"TensorBoard(pathlib.Path({str(tmp_path)!r}), 'p', {{}}).close(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr


def test_unknown_and_missing_trackers(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="'wandbb'.*'wandb'"):
        check_trackers(TrackerConfig(names=["wandbb"]))
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lmkit\[trackio\]'"):
        check_trackers(TrackerConfig(names=["trackio"]))


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_extras_get_every_number(name: str, tmp_path: Path, monkeypatch) -> None:
    """Against a stand-in that records calls: the packages themselves are extras."""
    calls: list[tuple[str, tuple, dict]] = []

    class Recorder(types.ModuleType):
        def __getattr__(self, attribute: str):
            if attribute.startswith("__"):
                raise AttributeError(attribute)

            def call(*args, **kwargs):
                calls.append((attribute, args, kwargs))
                return self

            return call

    recorder = Recorder(name)
    recorder.search_runs = lambda **_: []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, recorder)
    trackers = build_trackers(TrackerConfig(names=[name]), tmp_path, {"a": 1})
    trackers.log(4, {"train/loss": 2.5})
    trackers.text(4, "sample", "hello")
    trackers.close()
    logged = [(args, kwargs) for what, args, kwargs in calls if what in ("log", "log_metrics")]
    assert any(2.5 in args[0].values() for args, _ in logged)
    assert calls[-1][0] in ("finish", "end_run")


@pytest.mark.parametrize(("package", "known_by"), [("wandb", "id"), ("trackio", "name"), ("mlflow", "run_id")])
def test_runs_of_different_sweeps_do_not_merge_and_a_resume_goes_on(
    package: str, known_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their directories have the same names; before, the second sweep's curves went on where the first's ended."""
    known: list[str] = []
    made: dict[str, str] = {}

    def start_run(*, run_id: str = "", run_name: str = "", tags: dict[str, str] | None = None) -> None:
        if tags:
            run_id = f"mlflow-{len(known)}"
            made[tags["lmkit_run"]] = run_id
        known.append(run_id)

    def search_runs(*, filter_string: str, **_) -> list:
        name = filter_string.split("'")[1]
        return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=made[name]))] if name in made else []

    stand_in = types.ModuleType(package)
    for name in ("set_tracking_uri", "set_experiment", "log_dict"):
        setattr(stand_in, name, lambda *_: None)
    stand_in.init = lambda **words: known.append(words[known_by])  # type: ignore[attr-defined]
    stand_in.start_run, stand_in.search_runs = start_run, search_runs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package, stand_in)
    for sweep in ("one", "two", "one"):
        folder = tmp_path / sweep / "0"
        folder.mkdir(parents=True, exist_ok=True)
        build_trackers(TrackerConfig(names=[package]), folder, {})
    assert known[0] != known[1]
    assert known[0] == known[2]
