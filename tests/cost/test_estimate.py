"""The plan's figures: against the real blueprint, against formulas done by hand, and against each other."""

import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from helpers import ROOT
from lmkit.compiler.network import network_of
from lmkit.config import ConfigError
from lmkit.config.entry import compose, run_verb
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.model import Remat
from lmkit.config.sections.optim import Optimizer
from lmkit.core.state import make_blueprint
from lmkit.cost.context import make_context
from lmkit.cost.estimate import Estimate, estimate
from lmkit.cost.flops import flops_per_row
from lmkit.cost.memory import ALWAYS, LOSS
from lmkit.cost.traffic import traffic_of
from lmkit.cost.work import flops_by_part, repeated_flops
from lmkit.parallel.mesh import AXES, build_mesh
from lmkit.plan.advice import advice


def planned(*words: str) -> Estimate:
    return estimate(compose([f"+experiment={words[0]}", *words[1:]]))


def sizes(**axes: int) -> dict[str, int]:
    return {axis: axes.get(axis, 1) for axis in AXES}


def item(found: Estimate, name: str) -> float:
    return next((one.size for one in found.memory.items if one.name == name), 0.0)


def test_unrolled_layers_are_planned_as_the_cpus_compiler_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["gpt_small", "hardware=cpu", "hardware.devices=1", "model.vocab_size=2048"]
    none, dots = (planned(*words, "model.scan_layers=true", f"model.remat={remat}") for remat in ("none", "dots"))
    assert none.memory.peak > 1.5 * dots.memory.peak
    for has in (True, False):
        monkeypatch.setattr("lmkit.cost.context.has_remat", lambda has=has: has)
        unrolled = planned(*words, "model.remat=dots", "model.scan_layers=false")
        assert unrolled.memory.peak == (dots if has else none).memory.peak
        why = next(one.why for one in unrolled.memory.items if one.name == "activations")
        assert ("undone" in why) is not has
        elsewhere = planned("gpt2_124m", "hardware=h100_1", "model.scan_layers=false")
        assert elsewhere.memory.peak == planned("gpt2_124m", "hardware=h100_1").memory.peak


@pytest.mark.parametrize("kind", Optimizer)
def test_the_state_is_that_of_the_real_blueprint(kind: Optimizer) -> None:
    words = ["mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2", f"optim={kind.name}", "optim.ema=0.99"]
    found = planned("gpt_tiny", "hardware=h100_8", *words)
    config = compose(["+experiment=gpt_tiny", *words])
    mesh = build_mesh(MeshConfig(data=1, fsdp=4, tensor=2), jax.devices())
    real = make_blueprint(config.model, config.optim, config.train.steps, mesh)
    state = sum(item(found, name) for name in ("parameters", "optimiser state", "moving average"))
    # the step's counter is not listed
    assert state == pytest.approx(real.state_bytes_per_device, abs=8)


@pytest.mark.parametrize(
    ("name", "hardware"),
    [
        ("gpt2_124m", "h100_8"), ("gpt3_1b3", "v5p_64"), ("gpt3_6b7", "h100_64"), ("gpt3_175b", "v5p_512"),
        ("llama3_8b", "h100_64"), ("llama3_70b", "v5p_256"), ("mixtral_8x7b", "h100_64"),
    ],
)  # fmt: skip
def test_published_models_fit_where_they_should(name: str, hardware: str) -> None:
    found = planned(name, f"hardware={hardware}")
    assert found.fits
    assert found.fits_host
    assert 0.2 < found.mfu < 0.7
    part = next(iter(found.context.experiment.model.towers().values()))
    six = 6 * found.active_params  # Kaplan et al. 2020; embeddings that are only looked up and attention come on top
    scores = found.flops["attention: scores"] / found.context.tokens_per_step
    looked_up = 6 * part.vocab_size * part.embed_dim * (not getattr(part, "tie_embeddings", False))
    positions = 6 * part.max_seq_len * part.embed_dim * (name.startswith("gpt"))
    assert sum(found.flops.values()) / found.context.tokens_per_step == pytest.approx(
        six + scores - looked_up - positions, rel=2e-3
    )


@pytest.mark.parametrize("name", ["vit_digits", "en_es", "whisper_digits", "bert_sotu", "gpt_small", "spam"])
def test_every_family_has_a_plan(name: str) -> None:
    words = ["init_from=somewhere"] if name == "spam" else []
    found = planned(name, "hardware=cpu_1", *words)
    assert found.fits
    context = found.context
    row = flops_per_row(context.experiment.model, context.blueprint.specs, context.source_len, context.target_len,
                        context.predicted)  # fmt: skip
    assert sum(found.flops.values()) == pytest.approx(row * context.experiment.train.batch_size)


def test_float8_halves_the_time_of_linear_layers_and_what_fsdp_gathers() -> None:
    words = ["gpt3_1b3", "hardware=h100_8", "mesh=fsdp"]
    same, float8 = (planned(*words, f"model.linear_dtype={name}") for name in ("same", "float8"))
    linear = {"attention: q, k, v", "attention: output", "MLP: up", "MLP: down"}
    part = sum(flops for name, flops in same.flops.items() if name in linear) / sum(same.flops.values())
    assert same.flops == float8.flops
    hardware = same.context.experiment.hardware
    gain = 1 - hardware.bf16_tflops / hardware.fp8_tflops
    again = planned(*words, "model.remat=none").step.compute
    assert planned(*words, "model.remat=none", "model.linear_dtype=float8").step.compute == pytest.approx(
        again * (1 - gain * part), rel=0.02
    )
    sent = [
        {
            row.why: row.sent_bytes
            for row in traffic_of(one.context.experiment, one.context.blueprint, 2)
            if "para" in row.why
        }
        for one in (same, float8)
    ]
    assert sent[1]["layers: parameters"] == sent[0]["layers: parameters"] / 2
    assert sent[1]["head and ends: parameters"] == sent[0]["head and ends: parameters"]
    old = (
        planned("gpt3_1b3", "hardware=a100_8", "mesh=fsdp", f"model.linear_dtype={name}") for name in ("same", "float8")
    )
    assert len({one.step.compute for one in old}) == 1  # it has no float8


def test_remat_trades_memory_for_computing() -> None:
    each = {remat: planned("gpt3_1b3", "hardware=h100_64", f"model.remat={remat.name}") for remat in Remat}
    kept = [item(each[remat], "activations") for remat in (Remat.none, Remat.dots, Remat.names, Remat.full)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 2 * kept[1] > 2 * kept[2] > 3 * kept[3]
    work = [each[remat].step.compute for remat in (Remat.none, Remat.dots, Remat.names, Remat.full)]
    assert work == sorted(work)
    assert work[0] == work[1] < work[2]
    assert item(each[Remat.offload], "activations") == kept[3]
    assert each[Remat.offload].memory.host_bytes > each[Remat.full].memory.host_bytes


def test_full_remat_repeats_all_but_the_last_product() -> None:
    context = make_context(compose(["+experiment=gpt3_1b3", "hardware=h100_64", "model.remat=full"]))
    parts = flops_by_part(context)
    layers = sum(parts.values()) - parts["head"]
    expected = (layers - parts["MLP: down"]) / 3 + parts["attention: scores"] / 6
    assert repeated_flops(context, parts) == pytest.approx(expected)


def test_what_stands_in_one_place_only_is_not_in_the_sum() -> None:
    found = planned("gpt2_124m", "hardware=h100_8", "objective.chunk_tokens=0")
    assert found.memory.narrow == LOSS
    always = sum(one.size for one in found.memory.items if one.when == ALWAYS)
    assert found.memory.peak == pytest.approx(always + item(found, "logits chunk"))
    tokens = 480 / 8 * 1024  # all logits at once: float32, and bfloat16 gradients
    assert item(found, "logits chunk") > tokens * 50257 * 6


@pytest.mark.parametrize(
    ("words", "item_name", "factor"),
    [
        (["train.accumulate_steps=4"], "activations", 1 / 4),
        (["mesh.data=1", "mesh.fsdp=8", "mesh.tensor=8"], "activations", 1),
        (["mesh.data=1", "mesh.fsdp=8", "mesh.tensor=8"], "parameters", 1),
        (["mesh.data=8", "mesh.fsdp=8"], "parameters", 8),
        (["mesh.data=1", "mesh.fsdp=8", "mesh.context=8"], "activations", 1),
        (["mesh.data=1", "mesh.fsdp=8", "mesh.context=8"], "parameters", 8),
    ],
)
def test_what_an_axis_divides(words: list[str], item_name: str, factor: float) -> None:
    before = planned("gpt3_1b3", "hardware=h100_64", "model.remat=full")
    after = planned("gpt3_1b3", "hardware=h100_64", "model.remat=full", *words)
    assert item(after, item_name) == pytest.approx(
        factor * item(before, item_name), rel=0.05
    )  # norms and biases are whole everywhere


@pytest.mark.parametrize(
    ("option", "axes", "dcn", "expected"),
    [
        ("h100_64", {"fsdp": 64}, {}, {"fsdp": ("DCN", 400)}),  # eight cards of a host
        ("h100_64", {"data": 8, "tensor": 8}, {}, {"data": ("DCN", 50), "tensor": ("NVLink", 450)}),
        ("h100_64", {"data": 16, "tensor": 4}, {}, {"data": ("DCN", 100)}),
        ("v5p_512", {"fsdp": 64, "tensor": 8}, {}, {"fsdp": ("ICI", 400), "tensor": ("ICI", 200)}),
        ("v5p_512", {"fsdp": 128, "tensor": 4}, {}, {"tensor": ("ICI", 100)}),  # a part of a side
        ("v5e_16", {"fsdp": 16}, {}, {"fsdp": ("ICI", 100)}),  # 4 x 4: two sides, both open
        ("v5e_512", {"data": 2, "fsdp": 256}, {"data": 2}, {"data": ("DCN", 3.125), "fsdp": ("ICI", 200)}),
        ("v7x_128", {"fsdp": 64, "tensor": 2}, {}, {"fsdp": ("ICI", 300), "tensor": ("ICI", 50)}),
    ],
)
def test_what_an_axis_runs_over(option: str, axes: dict, dcn: dict, expected: dict) -> None:
    inner = {axis: n // dcn.get(axis, 1) for axis, n in axes.items()}
    words = [f"mesh.{axis}={n}" for axis, n in ({"data": 1} | inner).items()]
    words += [f"mesh.dcn.{axis}={n}" for axis, n in dcn.items()]
    config = compose(["+experiment=gpt3_1b3", f"hardware={option}", *words])
    sides = config.hardware.slice_sides(math.prod(dcn.values()))
    for axis, (name, gb) in expected.items():
        found = network_of(config.hardware, config.mesh, sizes(**axes), sides, axis)
        assert (found.name, found.bytes_per_sec / 1e9) == (name, pytest.approx(gb))


def test_a_step_is_a_sum_of_which_most_of_what_is_sent_beside_is_hidden() -> None:
    words = ["gpt3_175b", "hardware=v5p_512", "mesh.fsdp=64", "mesh.tensor=8"]
    step = planned(*words).step
    assert step.waited > step.overlapped > 0
    assert step.total == step.compute + step.memory + 0.09 * step.overlapped + step.waited + step.overhead
    assert step.overhead == 1e-3
    assert planned(*words, "plan.exposed_share=0.5").step.exposed == 0.5 * step.overlapped
    slow = planned(*words, "hardware.link_gb_per_sec=0.1").step
    assert slow.bound == "the network"
    assert slow.overlapped == pytest.approx(1000 * step.overlapped)
    assert slow.exposed == pytest.approx(slow.overlapped - slow.compute - slow.memory)


def test_products_run_at_the_rate_that_a_device_reaches_with_a_large_one() -> None:
    words = ["gpt3_1b3", "hardware=v6e_64", "model.remat=none"]
    found = planned(*words)
    scores = found.flops["attention: scores"]
    work = sum(found.flops.values()) + scores / 6  # which the backward pass makes again
    assert found.step.compute == pytest.approx(work / (64 * 918e12 * 0.7))
    assert planned(*words, "hardware.matrix_share=0").step.compute == pytest.approx(0.7 * found.step.compute)
    gpu = planned("gpt3_1b3", "hardware=h200_64", "model.remat=none").step.compute
    assert gpu == pytest.approx(work / (64 * 989e12 * 0.8 * 0.78))


def test_scores_that_no_kernel_keeps_from_the_memory_are_moved() -> None:
    """By hand: 32 rows of 2,048 on a device, 16 heads, 24 layers, half of the keys seen; 12 moves of 4 bytes."""
    words = ["gpt3_1b3", "hardware=h100_16", "mesh.data=1", "mesh.fsdp=16", "model.attention=xla"]
    xla = planned(*words, "model.remat=dots")
    assert xla.memory_traffic["scores of attention"] == 12 * 4 * 32 * 16 * 24 * 2048 * 2048 / 2
    again = planned(*words, "model.remat=full").memory_traffic["scores of attention"]
    assert again == pytest.approx(4 / 3 * xla.memory_traffic["scores of attention"])
    for other in (["hardware=v5e_16", "model.attention=splash"], ["hardware=cpu_16", "hardware.memory_gib=0"]):
        assert "scores of attention" not in planned(*words[:1], *words[2:4], *other).memory_traffic


def test_on_a_cpu_nothing_runs_beside_anything() -> None:
    rates = ["hardware.memory_gb_per_sec=10", "hardware.dcn_gb_per_sec=1"]
    step = planned("gpt_small", "hardware=cpu_2", *rates, "plan.step_overhead_sec=0.2").step
    assert min(step.compute, step.memory, step.overlapped) > 0
    assert step.total == pytest.approx(step.compute + step.memory + step.overlapped + step.waited + 0.2)


def test_what_is_sent_after_the_backward_pass_is_waited_for() -> None:
    """With micro-batches what is reduced over data, and Muon's matrices, run beside nothing."""
    words = ["hardware=h100_64", "mesh.data=8", "mesh.fsdp=8"]
    step = planned("llama3_8b", *words).step
    assert step.waited == 0
    late = planned("llama3_8b", *words, "train.accumulate_steps=4").step
    over_data = [one for one in late.sent if one.axes == ("data",)]
    assert [one.overlapped for one in over_data] == [False]
    assert late.waited == pytest.approx(sum(one.seconds for one in over_data))
    assert planned("llama3_8b", *words, "optim=muon").step.waited > 0


def test_whole_float32_weights_are_multiplied_where_they_are() -> None:
    """By hand: a layer of gpt_tiny has 4 x 64 x 64 and 2 x 64 x 256 elements in matrices, and few in norms."""
    words = ["gpt_tiny", "model.vocab_size=264"]
    alone = item(planned(*words, "hardware=cpu_1"), "communication buffers")
    assert alone == pytest.approx(4 * (4 * 64 * 64 + 2 * 64 * 256), rel=0.02)  # a layer's gradients
    for other in (["hardware=cpu_8", "mesh.data=1", "mesh.fsdp=8"], ["hardware=h100_1"]):
        size = 4 if "cpu_8" in other[0] else 2
        copied = item(planned(*words, *other), "communication buffers")  # and two layers' weights
        assert copied == pytest.approx(3 * size / 4 * alone, rel=0.06)


def test_muons_own_products_are_counted() -> None:
    """By hand: q, k, v, the result are 192 x 192, the MLP is 192 x 768 twice; five iterations; four layers."""
    found = planned("gpt_small", "hardware=cpu_1")
    square, wide = 6 * 192**3, 4 * 192**2 * 768 + 2 * 192**3
    assert found.update == 4 * 5 * (4 * square + 2 * wide)
    split = planned("gpt_small", "hardware=h100_8", "mesh.data=2", "mesh.fsdp=4")
    assert split.update == pytest.approx(2 * found.update)  # on both of data: only fsdp shares it out
    filled = planned("gpt_small", "hardware=h100_8", "mesh.data=1", "mesh.fsdp=8", "model.num_layers=1")
    assert filled.update == 8 * 5 * (square + wide)  # 4 and 2 matrices: as if there were 8 of each
    without = planned("gpt_small", "hardware=cpu_1", "optim=adamw", "optim.learning_rate=1e-3")
    assert without.update == 0
    assert found.step.compute - without.step.compute == pytest.approx(found.update / (0.14e12 * 0.7))
    assert found.mfu < without.mfu  # they take time and are no part of it


def test_money_and_energy() -> None:
    found = planned("llama3_8b", "hardware=h100_64", "plan.tokens=1e12", "plan.pue=1.0", "plan.co2_g_per_kwh=100")
    hours = 64 * 1e12 / found.tokens_per_sec / 3600
    assert found.run.days == pytest.approx(hours / 64 / 24)
    assert found.run.usd == pytest.approx(hours * 4.916)
    assert found.run.kwh == pytest.approx(hours * 0.7)
    assert found.run.co2_kg == pytest.approx(hours * 0.07)
    assert found.optimal_tokens == pytest.approx(20 * 8.03e9, rel=1e-3)


def test_experts_that_a_token_does_not_meet_are_not_active() -> None:
    assert planned("mixtral_8x7b", "hardware=h100_64").active_params == pytest.approx(12.9e9, rel=0.01)  # their paper's


def test_advice_comes_true() -> None:
    words = ["gpt3_6b7", "hardware=a100_40gb_64", "model.remat=none"]
    found = planned(*words)
    assert not found.fits
    changes = advice(found)
    assert changes[0].fits
    assert {row.keys for row in changes} > {"model.remat=full", "train.accumulate_steps=2"}
    for row in (changes[0], changes[-1]):
        then = planned(*words, *row.keys.split())
        assert then.memory.peak == pytest.approx(row.peak)
        assert found.memory.peak - then.memory.peak == pytest.approx(row.saved)
        assert then.fits == row.fits


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["+experiment=gpt3_1b3"], ["hardware=auto", "hardware=h100_64"]),
        (["+experiment=gpt3_1b3", "hardware=v6p_64"], ["no hardware named 'v6p_64'", "There are: a100"]),
        (["+experiment=gpt3_1b3", "hardware=v5p"], ["how many?", "hardware=v5p_64"]),
        (["+experiment=gpt3_175b", "hardware=v5p_500"], ["devices=500", "256 and 512"]),
        (
            ["+experiment=gpt3_175b", "hardware=v5p_256"],
            ["mesh.fsdp=512 takes 512", "mesh.fsdp can be 1, 2, 4, 8, 16, 32, 64, 128, 256", "hardware=v5p_512"],
        ),
        (["+experiment=gpt3_175b", "hardware=h100_100"], ["devices=100", "take hardware=h100_512 or a multiple"]),
        (["+experiment=gpt3_1b3", "hardware=v5p_1024"], ["train.batch_size=512", "1024"]),
        (["+experiment=gpt3_1b3", "hardware=v5p_64", "model.attention=cudnn"], ["model.attention=cudnn", "NVIDIA"]),
        (["+experiment=gpt3_1b3", "hardware=h100_64", "plan.json=/nowhere/x"], ["plan.json=/nowhere/x"]),
    ],
)
def test_mistakes_are_one_line_with_the_way_out(words, parts, capsys: pytest.CaptureFixture) -> None:
    assert run_verb("plan", "lmkit.plan.main:plan", "about", words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err


def test_the_verdict_comes_first_and_is_the_status(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    words = ["+experiment=gpt3_6b7", f"plan.json={tmp_path / 'plan.json'}"]
    assert run_verb("plan", "lmkit.plan.main:plan", "about", [*words, "hardware=h100_64"]) == 0
    assert capsys.readouterr().out.startswith("fits: ")
    plain = json.loads((tmp_path / "plan.json").read_text())
    assert plain["fits"]
    assert plain["memory"]["peak_bytes"] < plain["memory"]["limit_bytes"]
    assert run_verb("plan", "lmkit.plan.main:plan", "about", [*words, "hardware=v5e_64"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("does not fit: ")
    assert out.index("what would help") < out.index("memory of a device")
    assert run_verb("plan", "lmkit.plan.main:plan", "about", [*words[:1], "hardware=h100_64", "plan.json=-"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"] == 64


def test_an_answer_in_seconds_and_no_device_touched() -> None:
    """In CPU seconds, which other processes do not change."""
    words = [sys.executable, "-m", "lmkit.plan", "+experiment=gpt3_175b", "hardware=v5p_512"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = os.environ | {"JAX_PLATFORMS": "no_such_platform", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("fits")
    assert after.ru_utime - before.ru_utime < 5  # 1.9 on a laptop's core; slower ones are allowed for


def test_the_hardware_asked_for_is_that_which_is_shown() -> None:
    config = compose(["+experiment=gpt3_1b3", "mesh.fsdp=64", "hardware=h100"])
    assert estimate(config).context.num_devices == 64  # of the mesh, where the hardware does not say
    smaller = dataclasses.replace(config, hardware=dataclasses.replace(config.hardware, memory_gib=1))
    with pytest.raises(ConfigError, match="mesh.fsdp=64"):
        estimate(dataclasses.replace(smaller, hardware=dataclasses.replace(config.hardware, devices=32)))
    assert not estimate(smaller).fits
