"""What CI runs in rotation: everything gets its turn, and what a change touches comes first."""

import json
from pathlib import Path

import pytest

from helpers import ROOT, load_tool

plan = load_tool("ci_plan")
COMMITS = ["00", "01", "02"]


def test_every_section_and_slow_file_gets_its_turn() -> None:
    everything = {name for third in plan.THIRDS for name in third}
    assert {name for commit in COMMITS for name in plan.sections([], commit)} == everything
    slow = [set(plan.slow_tests([], commit)) for commit in COMMITS]
    marked = {p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("test_*.py") if plan.has_slow(p)}
    assert set.union(*slow) == marked
    assert sum(map(len, slow)) == len(marked), "none runs twice in three commits"
    assert all(f"\n{name}() {{" in (ROOT / ".ci" / "run").read_text() for name in plan.EVERY)


def test_what_is_listed_exists() -> None:
    lines = (ROOT / "tests" / "rotation.txt").read_text().splitlines()
    listed = [line.split("[")[0].split("::") for line in lines if not line.startswith("#")]
    assert [name for file, name in listed if f"\ndef {name}(" not in (ROOT / file).read_text()] == []


def test_what_a_change_touches_runs_at_once() -> None:
    for commit in COMMITS:
        assert "parity" in plan.sections(["lmkit/interop/save.py"], commit)
        assert "tests/nn/test_ring.py" in plan.slow_tests(["lmkit/nn/ring.py"], commit)  # through nn/attend.py
        assert "tests/nn/test_pipeline.py" in plan.slow_tests(["tests/nn/test_pipeline.py"], commit)
    touched = plan.touched_tests(["lmkit/nn/position.py"])
    assert {"tests/nn/test_position.py", "tests/nn/test_blocks.py"} <= set(touched)
    assert "tests/launch/test_slurm.py" not in touched


def test_each_section_is_kept_and_the_oldest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "RESULT", tmp_path / "result.json")
    log = tmp_path / "log"
    log.write_text("== fast begins\n5 passed, 2 skipped in 3s\n1 failed, 7 passed\n== fast: 12 s\n")
    assert (plan.age(), plan.missing()) == ("never", list(plan.EVERY))
    for name in plan.EVERY[1:]:
        plan.record(name, 1, log)
    assert (plan.age(), plan.missing()) == ("never", ["fast"]), "one section has not run"
    plan.record("fast", 42.4, log)
    kept = json.loads((tmp_path / "result.json").read_text())
    assert list(kept) == list(plan.EVERY)
    assert kept["fast"]["counts"] == {"passed": 12, "skipped": 2, "failed": 1}
    assert (kept["fast"]["seconds"], plan.age(), plan.missing()) == (42, "0", [])
    older = plan.git("rev-list", "-1", "--skip=3", "--first-parent", "HEAD")
    (tmp_path / "result.json").write_text(json.dumps(kept | {"lint": kept["lint"] | {"commit": older}}))
    assert (plan.last_full(), plan.missing()) == (older, ["lint"])
    assert int(plan.age()) == plan.commits_since(older) >= 3
    (tmp_path / "result.json").write_text(json.dumps(kept | {"lint": kept["lint"] | {"commit": "0" * 40}}))
    assert plan.age() == "never", "of another history"


def test_the_thirds_of_a_full_run_are_all_slow_files(capsys: pytest.CaptureFixture[str]) -> None:
    for third in "012":
        plan.main(["slow", "--third", third])
    assert sorted(capsys.readouterr().out.split()) == sorted(plan.all_slow())
