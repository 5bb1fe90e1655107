"""What a run teaches: factors from synthetic measurements, the user's file, what wins over it, and clear mistakes."""

import json
from pathlib import Path

import pytest
import yaml

from lmkit.config import ConfigError
from lmkit.config.calibration import Calibration, calibration_file, read_calibration, write_calibration
from lmkit.config.entry import compose, run_verb
from lmkit.config.sections.plan import assumed
from lmkit.cost.estimate import Estimate, estimate
from lmkit.cost.terms import Terms, fit, terms_of

GPU, CPU = assumed("gpu"), assumed("cpu")
ENTRY = Calibration("h100", "/runs/one", "2026-11-22 20:00", "NVIDIA H100", {"compute_share": 0.5}, {}, {"load": 1.5})


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes a real user's file."""
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))


def planned(*words: str) -> Estimate:
    return estimate(compose([f"+experiment={words[0]}", *words[1:]]))


def write_run(folder: Path, found: Estimate, seconds: float, **changed: dict | None) -> Path:
    """A run's directory with what train leaves: planned by `found`, measured to take `seconds`."""
    folder.mkdir(parents=True)
    name = found.context.experiment.hardware.name
    parts: dict[str, dict | None] = {
        "planned": {
            "hardware": name, "devices": found.context.num_devices, "device": "a device", "peaks": {},
            "terms": terms_of(found)._asdict(), "step_sec": found.step.total, "tokens_per_sec": found.tokens_per_sec,
            "memory_bytes": found.memory.peak,
        },
        "measured": {"step_sec": seconds, "cpu_sec": seconds / 2, "steps": 20, "cores": 8, "processes": 1, "load": 0.5,
                     "tokens_per_sec": found.context.tokens_per_step / seconds, "memory_bytes": 2**30},
    }  # fmt: skip
    parts = {part: (values or {}) | (changed.get(part) or {}) for part, values in parts.items()}
    (folder / "receipt.json").write_text(json.dumps(parts))
    (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
    return folder


def plan(*words: str) -> int:
    return run_verb("plan", "lmkit.plan.main:plan", "about", [*words, "run.compile_cache="])  # other tests' stays


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("compute_share", Terms(2.0, 0.001, 0.01, 0.0)),
        ("memory_share", Terms(0.001, 2.0, 0.01, 0.0)),
        ("network_share", Terms(0.001, 0.001, 0.001, 2.0)),
    ],
)
def test_a_factor_on_which_the_time_hangs_is_recovered(name: str, terms: Terms) -> None:
    for truth in (0.35, 0.95):
        found = fit(terms, GPU, terms.total(GPU | {name: truth}))
        assert found.factors[name] == pytest.approx(truth, rel=0.01)
        others = {other: value for other, value in found.factors.items() if other != name}
        assert others == pytest.approx({other: GPU[other] for other in others}, rel=0.01)
        assert set(found.seen) == {name}  # of the others it says nothing


def test_what_is_sent_is_hidden_but_for_a_share_and_for_what_is_longer_than_the_rest() -> None:
    factors = GPU | {"compute_share": 1.0, "memory_share": 0.5, "network_share": 0.5, "step_overhead_sec": 1.0}
    terms = Terms(2.0, 0.5, 1.0, 0.25)  # at these shares 2, 1, 2 and 0.5
    assert terms.total(factors | {"exposed_share": 0.25}) == 2 + 1 + 0.25 * 2 + 0.5 + 1
    assert terms._replace(overlapped=4.0).total(factors | {"exposed_share": 0.25}) == 3 + (8 - 3) + 0.5 + 1
    assert terms.total(factors | {"exposed_share": 1.0}) == 2 + 1 + 2 + 0.5 + 1  # nothing is hidden


def test_a_fit_explains_the_run_by_the_least_change() -> None:
    terms = Terms(1.0, 0.5, 0.0, 0.2)
    start = terms.total(CPU)
    for ratio in (0.9, 1.1, 2.0):
        found = fit(terms, CPU, start * ratio)
        assert terms.total(found.factors) == pytest.approx(start * ratio, rel=1e-4)
        moved = {name: abs(found.factors[name] / value - 1) for name, value in CPU.items()}
        assert moved["compute_share"] > moved["memory_share"] > moved["network_share"] > moved["step_overhead_sec"] > 0
    fast = fit(terms, CPU, 1.0)  # at the peaks it takes 1.7
    assert max(fast.factors[name] for name in CPU if name.endswith("share")) == 1.0
    assert terms.total(fit(terms, CPU, 1.0, capped=False).factors) == pytest.approx(1.0, rel=1e-4)


def test_a_calibrated_plan_predicts_the_run_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["gpt3_1b3", "hardware=h100_64"]
    before = planned(*words)
    run = write_run(tmp_path / "run", before, 1.25 * before.step.total)
    assert plan(f"plan.calibrate={run}") == 0
    out = capsys.readouterr().out
    assert "0.80" in out  # planned / measured
    assert str(calibration_file()) in out.replace("\n", "")
    after = planned(*words)
    assert after.step.total == pytest.approx(1.25 * before.step.total, rel=1e-3)
    assert after.calibration is not None
    assert plan(f"+experiment={words[0]}", *words[1:]) == 0
    assert f"calibrated from run {run} on {after.calibration.date}" in capsys.readouterr().out
    assert plan(f"+experiment={words[0]}", *words[1:], "plan.json=-") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["calibration"]["run"] == str(run)
    assert plain["shares"]["compute_share"] == after.context.experiment.plan.compute_share < GPU["compute_share"]
    other = planned("gpt3_1b3", "hardware=a100_64")  # it teaches nothing about other devices
    assert other.calibration is None
    assert other.context.experiment.plan.compute_share == GPU["compute_share"]


def test_a_key_that_is_set_wins_over_the_file() -> None:
    write_calibration(ENTRY)
    assert planned("gpt3_1b3", "hardware=h100_64").context.experiment.plan.compute_share == 0.5
    found = planned("gpt3_1b3", "hardware=h100_64", "plan.compute_share=0.6")
    assert found.context.experiment.plan.compute_share == 0.6
    assert found.calibration is None  # nothing of it is used


def test_the_peaks_of_a_cpu_are_those_of_the_machine(tmp_path: Path) -> None:
    peaks = {"fp32_tflops": 0.8, "memory_gb_per_sec": 40.0}
    write_calibration(Calibration("cpu", "/runs/one", "today", "8 x CPU", {}, peaks))
    one, eight = (planned("gpt_tiny", f"hardware=cpu_{n}", "train.batch_size=64").context.experiment for n in (1, 8))
    assert (one.hardware.fp32_tflops, one.hardware.memory_gb_per_sec) == (0.8, 40.0)
    assert eight.hardware.fp32_tflops == pytest.approx(0.1)  # they share it
    by_hand = planned("gpt_tiny", "hardware=cpu_1", "hardware.fp32_tflops=0.3").context.experiment.hardware
    assert (by_hand.fp32_tflops, by_hand.memory_gb_per_sec) == (0.3, 40.0)


def test_a_cpu_faster_than_its_measured_peak_has_a_higher_one(tmp_path: Path) -> None:
    found = planned("gpt_tiny", "hardware=cpu_1", "hardware.fp32_tflops=0.01")
    run = write_run(tmp_path / "run", found, 0.5 * found.step.total, planned={"peaks": {"fp32_tflops": 0.01}})
    assert plan(f"plan.calibrate={run}") == 0
    entry = read_calibration("cpu")
    assert entry is not None
    assert entry.factors["compute_share"] == 1.0
    assert entry.peaks["fp32_tflops"] > 0.0139  # of 0.01, of which 0.7 was assumed and twice that reached
    assert planned("gpt_tiny", "hardware=cpu_1").step.total == pytest.approx(0.5 * found.step.total, rel=0.01)


def test_on_one_core_a_step_takes_its_cpu_seconds(tmp_path: Path) -> None:
    found = planned("gpt_tiny", "hardware=cpu_1")
    seconds = 2 * found.step.total  # of which half are the process's
    changes = {"planned": {"peaks": {"fp32_tflops": 0.14}}, "measured": {"cores": 1}}
    assert plan(f"plan.calibrate={write_run(tmp_path / 'one', found, seconds, **changes)}") == 0
    assert planned("gpt_tiny", "hardware=cpu_1").step.total == pytest.approx(seconds / 2, rel=1e-3)
    for name, measured in (("two", {"cores": 2}), ("many", {"cores": 1, "processes": 2})):
        changes["measured"] = measured
        assert plan(f"plan.calibrate={write_run(tmp_path / name, found, seconds, **changes)}") == 0
        assert planned("gpt_tiny", "hardware=cpu_1").step.total == pytest.approx(seconds, rel=1e-3)


def test_the_file_is_whole_and_has_an_entry_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_calibration(ENTRY)
    write_calibration(Calibration("h200", "/runs/two", "today", "NVIDIA H200", {"memory_share": 0.9}))
    assert read_calibration("h100") == ENTRY
    again = Calibration("h100", "/runs/three", "today", "NVIDIA H100", {"compute_share": 0.4})
    write_calibration(again)
    assert read_calibration("h100") == again
    assert read_calibration("a100") is None
    assert file.read_text().startswith("# What runs taught")
    assert list(yaml.safe_load(file.read_text())) == ["h100", "h200"]
    before = file.read_text()
    monkeypatch.setattr(yaml, "safe_dump", lambda *_, **__: 1 / 0)  # it breaks off while it writes
    with pytest.raises(ZeroDivisionError):
        write_calibration(ENTRY)
    assert file.read_text() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("h100: [1", "cannot be read"), ("- h100", "an entry for each device"), ("h100: 3", "delete the entry"),
        ("h100: {run: x, date: y, device: z, factors: {compute_share: -1}}", "above 0"),
        ("h100: {run: x, date: y, device: z, factors: {}, other: 1}", "delete the entry"),
    ],
)  # fmt: skip
def test_a_file_that_was_spoilt_is_named(text: str, says: str) -> None:
    calibration_file().parent.mkdir(parents=True)
    calibration_file().write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        planned("gpt3_1b3", "hardware=h100_64")
    assert str(calibration_file()) in str(caught.value)


def test_runs_that_teach_nothing_are_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = planned("gpt3_1b3", "hardware=h100_64")
    seconds = found.step.total
    running = write_run(tmp_path / "running", found, seconds)
    (running / "summary.json").unlink()
    broken = write_run(tmp_path / "broken", found, seconds)
    (broken / "receipt.json").write_text("{")
    old = write_run(tmp_path / "old", found, seconds)
    (old / "receipt.json").write_text("{}")
    other = write_run(tmp_path / "other", found, seconds, planned={"terms": {"compute": 1.0, "beside": True}})
    unknown = write_run(tmp_path / "unknown", found, seconds, planned={"reason": "no Such GPU"})
    short = write_run(tmp_path / "short", found, seconds, measured={"reason": "2 steps in a row"})
    fast = write_run(tmp_path / "fast", found, seconds / 10)
    good = write_run(tmp_path / "good", found, seconds)
    for words, says in (
        ([f"plan.calibrate={tmp_path / 'nothing'}"], "no run is there"),
        ([f"plan.calibrate={running}"], "under way or broke off"),
        ([f"plan.calibrate={broken}"], "cannot be read"),
        ([f"plan.calibrate={old}"], "nothing planned and measured"),
        ([f"plan.calibrate={other}"], "another version planned the run"),
        ([f"plan.calibrate={unknown}"], "not planned (no Such GPU)"),
        ([f"plan.calibrate={short}"], "not measured (2 steps in a row)"),
        ([f"plan.calibrate={fast}"], "mend the figures of hardware"),
        ([f"plan.calibrate={good}", "hardware=a100_64"], "the run was on h100"),
    ):
        assert plan(*words) == 2, says
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert says in err, err
    assert not calibration_file().exists()
    assert plan(f"plan.calibrate={good}", "hardware=h100_64") == 0
