"""What the plan said of a run beside what came of it: in the receipt, in the report, and never in a run's way."""

import dataclasses
import json
from pathlib import Path

import pytest

from helpers import tiny_experiment
from lmkit.config.calibration import Calibration, calibration_file, read_calibration, write_calibration
from lmkit.config.entry import run_verb
from lmkit.config.sections.hardware import HardwareConfig
from lmkit.core.setup import setup_mesh
from lmkit.core.state import Blueprint, make_blueprint
from lmkit.cost.estimate import estimate
from lmkit.pages.figures import planned_table
from lmkit.train import measured as truth
from lmkit.train.measured import Clock, compare_run, measure_run, plan_run

WORDS = [
    "+experiment=gpt_tiny",
    "data.holdout_every=300",
    "tracker=none",
    "train.sample_tokens=0",
    "train.eval_batches=1",
    "run.compile_cache=",
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes a real user's file."""
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "cache"))


def train(corpus: Path, run: Path, *words: str) -> dict:
    """Runs, and returns the receipt."""
    data = ["data=text_files", f"data.paths=[{corpus}]", "data.holdout_every=30"]
    assert run_verb("train", "lmkit.train.main:train", "about", [*WORDS, *data, f"run.dir={run}", *words]) == 0
    return json.loads((run / "receipt.json").read_text())


def blueprint_of(*words: str) -> Blueprint:
    experiment = tiny_experiment(*words)
    return make_blueprint(experiment.model, experiment.optim, experiment.train.steps, setup_mesh(experiment))


def test_a_run_is_planned_and_measured_and_teaches_the_next(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    receipt = train(corpus, run, "mesh.fsdp=2", "train.steps=12", "train.eval_every_steps=6", "plan.memory_share=0.4")
    out = capsys.readouterr().out
    planned, measured = receipt["planned"], receipt["measured"]
    assert (planned["hardware"], planned["devices"]) == ("cpu", 8)
    assert planned["factors"]["memory_share"] == 0.4  # an explicit key
    assert planned["from"] == "assumed or set by hand"
    assert planned["step_sec"] > 0
    # the first step has none before it, nor has that after an evaluation; it is of twelve
    assert measured["steps"] == 10
    assert measured["tokens_per_sec"] == pytest.approx(8 * 64 / measured["step_sec"])
    assert measured["mfu"] * measured["step_sec"] == pytest.approx(planned["mfu"] * planned["step_sec"])
    assert measured["memory_of"] == "the compiled step"
    assert planned["memory_bytes"] == pytest.approx(measured["memory_bytes"], rel=0.5)  # of a model of 130,000
    assert measured["process_peak_bytes"] > 10 * measured["memory_bytes"]
    assert compare_run(planned, measured).split(",")[0] in out
    page = (run / "report.html").read_text()
    assert "Planned and measured" in page
    assert f"{measured['step_sec']:.4g}" in page

    assert run_verb("plan", "lmkit.plan.main:plan", "about", [f"plan.calibrate={run}"]) == 0
    entry = read_calibration("cpu")
    assert entry is not None
    assert set(entry.factors) & {"compute_share", "memory_share"}
    again = train(corpus, run, "mesh.fsdp=2", "train.steps=24")  # the last part's are its own
    assert str(run) in again["planned"]["from"]
    assert again["planned"]["step_sec"] == pytest.approx(measured["step_sec"], rel=0.01)
    assert again["measured"]["steps"] == 10
    assert again["measured"]["step_sec"] != measured["step_sec"]
    short = train(corpus, run, "mesh.fsdp=2", "train.steps=26")
    assert short["measured"] == again["measured"], "a part too short for a median leaves what was measured before"
    assert again["measured"]["memory_bytes"] == measured["memory_bytes"]


def test_the_plan_of_a_run_is_that_of_the_verb() -> None:
    """With the run's own blueprint, on devices, and with one that the plan makes on none."""
    words = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "hardware=h100_8", "model.dtype=float32"]
    found = plan_run(tiny_experiment(*words), blueprint_of(*words))
    verb = estimate(tiny_experiment(*words))
    assert found["step_sec"] == pytest.approx(verb.step.total)
    assert found["memory_bytes"] == pytest.approx(verb.memory.peak)
    assert found["peaks"] == {}  # those of the catalogue are a data sheet's


def test_nothing_that_the_plan_cannot_do_stops_a_run(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = ["hardware=v5e_8", "hardware.topology=2x2x2"]  # there is no such slice
    assert "no such slice" in plan_run(tiny_experiment(*sheet), blueprint_of())["reason"]
    monkeypatch.setattr(truth, "known_hardware", lambda *_: None)
    assert "the catalogue" in plan_run(tiny_experiment("hardware=h100_8"), blueprint_of())["reason"]

    def broken(*_):
        raise AssertionError("a mistake of the plan's")

    monkeypatch.setattr(truth, "estimate", broken)
    receipt = train(corpus, tmp_path / "run", "train.steps=6")
    assert receipt["planned"] == {"reason": "AssertionError: a mistake of the plan's"}
    assert receipt["measured"]["step_sec"] > 0
    assert "AssertionError: a mistake of the plan&#x27;s" in (tmp_path / "run" / "report.html").read_text()


def test_the_devices_of_a_cpu_share_what_is_measured_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "matmul_flops", lambda *_, **__: 3e11)
    monkeypatch.setattr(truth, "copy_rate", lambda **_: 1e10)
    monkeypatch.setattr(truth, "cores_here", lambda: 4)
    found = plan_run(tiny_experiment(), blueprint_of())
    assert found["peaks"] == pytest.approx({"fp32_tflops": 4 * 0.3, "memory_gb_per_sec": 40.0})
    device = "4 x a CPU"
    monkeypatch.setattr(truth, "device_name", lambda _: device)
    write_calibration(Calibration("cpu", "/run", "today", device, {"memory_share": 0.5}, {"fp32_tflops": 0.5}))
    taught = plan_run(tiny_experiment(), blueprint_of())
    assert taught["peaks"] == pytest.approx({"fp32_tflops": 0.5})
    device = "8 x another CPU"  # of which the share is taken, and no peak
    elsewhere = plan_run(tiny_experiment(), blueprint_of())
    assert elsewhere["peaks"] == found["peaks"]
    assert elsewhere["factors"]["memory_share"] == taught["factors"]["memory_share"] == 0.5
    calibration_file().unlink()
    entry = HardwareConfig(name="cpu", platform="cpu", fp32_tflops=0.15, memory_gb_per_sec=5.0)
    by_hand = dataclasses.replace(tiny_experiment(), hardware=entry)
    assert plan_run(by_hand, blueprint_of())["step_sec"] == pytest.approx(found["step_sec"])


def test_a_clock_leaves_out_what_comes_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(truth.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(truth.time, "process_time", lambda: now[0] / 2)
    clock = Clock()
    for wait in (50.0, 2.0, 3.0):  # the first was compiled, or waited for data
        now[0] += wait
        clock.ended()
    clock.pause()
    for wait in (70.0, 2.0, 2.0, 9.0):  # an evaluation
        now[0] += wait
        clock.ended()
    assert list(clock.wall) == [2.0, 3.0, 2.0, 2.0, 9.0]
    found = measure_run(clock, {"mfu": 0.5, "step_sec": 4.0}, tokens_per_step=100, compiled_bytes=7)
    assert (found["step_sec"], found["cpu_sec"], found["tokens_per_sec"], found["mfu"]) == (2.0, 1.0, 50.0, 1.0)
    assert (found["memory_bytes"], found["steps"]) == (7, 5)


def test_a_device_that_tells_its_peak_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [5, 9]

    class Device:
        def memory_stats(self):
            return {"peak_bytes_in_use": peaks[0]}

    monkeypatch.setattr(truth.jax, "local_devices", lambda: [Device(), Device()])
    clock = Clock()
    clock.pause()
    peaks[0] = 100  # an evaluation takes more
    found = measure_run(clock, {}, tokens_per_step=1, compiled_bytes=7)
    assert (found["memory_bytes"], found["memory_of"]) == (5, "the fullest device")


def test_the_report_takes_what_it_finds() -> None:
    assert planned_table({}, {}, {}, {}) == ""
    odd = {"step_sec": "<b>", "memory_bytes": 1e400, "mfu": True, "from": "<i>"}
    page = planned_table({}, odd, {"step_sec": 2.0, "memory_of": "<u>", "load": None}, {})
    assert "<td>–</td><td>2</td><td>–</td>" in page
    assert not {"<b>", "<i>", "<u>"} & {page[i : i + 3] for i in range(len(page))}
    assert "not planned: no &lt;GPU&gt;" in planned_table({}, {"reason": "no <GPU>"}, {}, {})
