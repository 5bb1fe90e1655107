"""What compilers say of a step: the CPU's quickly, those of TPUs and GPUs where they are installed."""

import importlib.util
import json
from pathlib import Path

import pytest
from rich.console import Console

from helpers import ROOT, load_tool
from lmkit.compiler.topology import hardware_devices
from lmkit.config import ConfigError
from lmkit.config.entry import compose, run_verb
from lmkit.cost.estimate import Estimate, estimate
from lmkit.cost.traffic import traffic_of
from lmkit.cost.work import memory_traffic
from lmkit.plan import compiled as module
from lmkit.plan.compiled import Compiled, compiled_plan, large_arrays
from lmkit.plan.show import as_plain, show
from lmkit.plan.timed import plain_timed, timed_of

TABLE = load_tool("plan_table")


def planned(*words: str) -> Estimate:
    return estimate(compose(list(words)))


def test_the_cpu_compiles_what_is_planned() -> None:
    found = planned("+experiment=gpt_tiny", "hardware=cpu_8", "mesh.data=1", "mesh.fsdp=8", "model.vocab_size=512")
    compiled = compiled_plan(found.context)
    assert compiled.arguments == pytest.approx(sum(i.size for i in found.memory.items[:2]), rel=0.05)
    assert compiled.peak >= compiled.temporary > 0
    assert {one.axes for one in compiled.sent} == {("fsdp",)}
    assert sum(one.step_bytes for one in compiled.sent) > 0.9 * sum(
        row.sent_bytes for row in traffic_of(found.context.experiment, found.context.blueprint, found.context.itemsize)
    )
    assert compiled.arrays[0].size >= compiled.arrays[-1].size > 0
    assert compiled.fits(0)
    assert compiled.fits(compiled.peak)
    assert not compiled.fits(compiled.peak - 1)


def test_the_verb_compiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["+experiment=gpt_tiny", "hardware=cpu_8", "mesh.fsdp=8", "mesh.data=1", "plan.compile=true"]
    target = tmp_path / "plan.json"
    status = run_verb("plan", "lmkit.plan.main:plan", "", [*words, "model.vocab_size=512", f"plan.json={target}"])
    shown = capsys.readouterr().out
    assert status == 0
    assert "by the compiler" in shown.splitlines()[0]
    assert "largest arrays" in shown
    plain = json.loads(target.read_text())["compiled"]
    assert plain["fits"]
    assert plain["sent"][0]["axes"] == ["fsdp"]


def test_without_a_compiler_the_arithmetic_is_given_and_the_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "xla_cuda13" in name else found(name))
    words = ["+experiment=gpt2_124m", "hardware=h100_8", "model.remat=full", "plan.compile=true"]
    assert run_verb("plan", "lmkit.plan.main:plan", "", words) == 1
    captured = capsys.readouterr()
    assert "by arithmetic" in captured.out.splitlines()[0]
    assert "pip install 'lmkit[gpu-aot]'" in captured.err


@pytest.mark.parametrize(
    ("words", "gib"),
    [
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (68.40G) exceeds available HBM "
         "(15.75G).", 68.40),
        ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm.", 20.5),
        ("something else", 0.0),
    ],
)  # fmt: skip
def test_a_refusal_tells_how_much_it_would_take(words: str, gib: float) -> None:
    found = planned("+experiment=gpt_tiny", "hardware=v5e_4", "model.vocab_size=512")
    state = module.local_bytes(found.context.blueprint.shapes) if "temporaries" in words else 0
    assert module._needed(words, found.context) == pytest.approx(gib * 2**30 + state)


def test_the_largest_arrays_are_those_that_are_made() -> None:
    text = """HloModule x
%fused (p: f32[9,9]) -> f32[900,900] {
  %p = f32[9,9]{1,0} parameter(0)
  ROOT %inside = f32[900,900]{1,0} broadcast(%p)
}
ENTRY %main (a: f32[1000,1000]) -> f32[10,10] {
  %a = f32[1000,1000]{1,0} parameter(0)
  %b = bf16[100,100]{1,0} convert(%a), metadata={op_name="jit(step)/cast"}
  %c = f32[50,50]{1,0} fusion(%b), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/mix"}
  %v = f32[999,999]{1,0:S(1)} copy(%c)
  ROOT %d = f32[10,10]{1,0} slice(%c)
}
"""
    assert [(one.array, one.size, one.source) for one in large_arrays(text, 2)] == [
        ("bf16[100,100]", 20_000, "jit(step)/cast"), ("f32[50,50]", 10_000, "jit(step)/mix")
    ]  # fmt: skip


@pytest.mark.parametrize("point", TABLE.POINTS, ids=lambda point: "-".join(point[:4]).replace(" ", "_"))
def test_the_arithmetic_agrees_with_what_compilers_said(point: tuple[str, ...]) -> None:
    """Within 10 % of each peak that was measured, and never wrong about what fits."""
    line = TABLE.measured()[point]
    found = TABLE.estimate_of(point)
    assert found.memory.peak == pytest.approx(line["peak_bytes"], rel=0.1)
    assert found.fits == (not line["refusal"] and line["peak_bytes"] <= found.limit)


def test_the_table_in_the_docs_is_that_of_the_figures() -> None:
    assert TABLE.START + TABLE.table() + TABLE.END in (ROOT / "docs" / "plan.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("linear", ["same", "float8"])
def test_a_gpu_that_is_not_here(linear: str) -> None:
    pytest.importorskip("jax_plugins.xla_cuda13", reason="LOUD: the GPUs' compiler is not installed (lmkit[gpu-aot])")
    found = planned("+experiment=gpt2_124m", "model.vocab_size=50304", "hardware=h100_8", "train.batch_size=64",
                    "mesh.data=1", "mesh.fsdp=8", "model.remat=names", f"model.linear_dtype={linear}")  # fmt: skip
    compiled = compiled_plan(found.context)
    assert compiled.peak == pytest.approx(found.memory.peak, rel=0.1)
    least = sum(
        row.sent_bytes for row in traffic_of(found.context.experiment, found.context.blueprint, found.context.itemsize)
    )
    assert 0.99 < sum(one.step_bytes for one in compiled.sent) / least < 1.3


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_slices_that_are_not_here() -> None:
    """Two of them, data across."""
    pytest.importorskip("libtpu", reason="LOUD: libtpu is not installed (pip install 'lmkit[tpu]'): nothing compiled")
    words = ("+experiment=gpt_tiny", "model.vocab_size=512", "hardware=v5e_16", "mesh.dcn.data=2", "mesh.data=1",
             "mesh.fsdp=8", "train.batch_size=16")  # fmt: skip
    found = planned(*words)
    devices = hardware_devices(found.context.experiment.hardware, 2)
    assert len({device.slice_index for device in devices}) == 2
    compiled = compiled_plan(found.context)
    assert {one.axes for one in compiled.sent} == {("fsdp",)}  # between slices hosts send and receive: not counted


def test_an_unknown_gpu_cannot_be_compiled_for() -> None:
    hardware = compose(["+experiment=gpt_tiny", "hardware=h100_8", "hardware.name=h300"]).hardware
    with pytest.raises(ConfigError, match=r"hardware=h300 cannot be compiled for; there are a100, h100"):
        hardware_devices(hardware)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_what_a_tpu_refuses_is_told() -> None:
    pytest.importorskip("libtpu", reason="LOUD: libtpu is not installed (pip install 'lmkit[tpu]'): nothing compiled")
    found = planned("+experiment=gpt3_1b3", "hardware=v5e:4x4", "train.batch_size=512")
    compiled = compiled_plan(found.context)
    assert "memory" in compiled.refusal
    assert compiled.peak == pytest.approx(found.memory.peak, rel=0.1)
    assert not compiled.fits(0)


TPU_TEXT = """HloModule m, is_scheduled=true

ENTRY %main (p: f32[8]) -> f32[8] {
  %a = f32[8]{0} fusion(%p), calls=%x, metadata={op_name="jit(step)/mix"}, backend_config={"estimated_cycles":"3006000"}
  %d = f32[8]{0} convolution(%p, %p), metadata={op_name="jit(step)/dot"}, backend_config={"estimated_cycles":"1503000"}
}
"""


def test_the_time_by_the_compiler_stands_beside_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned("+experiment=gpt_tiny", "hardware=v5e_4", "model.vocab_size=512")
    timed = timed_of(found.context, TPU_TEXT)
    assert timed is not None
    assert timed.timeline.seconds == pytest.approx(3e-3, rel=1e-3)
    flops = sum(found.flops.values()) / 4
    assert timed.mfu == pytest.approx(flops / 197e12 / timed.timeline.seconds)
    assert timed.compute_floor == pytest.approx(flops / 197e12)
    assert timed.bandwidth_floor == pytest.approx(sum(memory_traffic(found.context).values()) / 819e9)
    plain = plain_timed(timed)
    assert plain["busy_sec"] == pytest.approx({"product": 1e-3, "other": 2e-3}, rel=1e-3)
    assert [one["source"] for one in plain["dearest"]] == ["jit(step)/mix", "jit(step)/dot"]
    compiled = Compiled(1.0, 2.0, 3.0, 4.0, 0.0, [], [], "", timed, "compiler options: x")
    show(Console(width=200), found, [], compiled)
    shown = capsys.readouterr().out
    assert "by arithmetic" in shown
    assert "33.3% matrix products" in shown
    assert "Never compared with a measured step" in shown
    assert "compiler options: x" in shown
    assert as_plain(found, [], compiled)["compiled"]["step"]["seconds"] == timed.timeline.seconds
    assert timed_of(planned("+experiment=gpt_tiny", "hardware=cpu_1", "model.vocab_size=512").context, "") is None
