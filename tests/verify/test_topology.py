"""A step compiled by the TPU's own compiler, with no TPU: what it sends, against theory."""

import math
from functools import cache
from typing import Any

import pytest

from lmkit.compiler.collectives import SLICED, Collective, total
from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment
from lmkit.cost.collectives import traffic_rows
from lmkit.cost.traffic import least_traffic
from lmkit.verify.main import verify
from lmkit.verify.topology import compile_for

POD = """run.name=llama3_8b model=llama3_8b verify.topology=v5e:16x16 mesh.data=1 mesh.fsdp=64 mesh.tensor=4
    model.remat=full data.seq_len=4096 train.batch_size=256"""
AXES = {"fsdp", "tensor"}
patient = pytest.mark.timeout(3000)  # a minute or two of one core, much longer on a busy machine


def needs_libtpu() -> None:
    pytest.importorskip("libtpu", reason="LOUD: libtpu is not installed (pip install 'lmkit[tpu]'): nothing compiled")


@cache
def pod() -> tuple[Experiment, Any, list[Collective]]:
    """llama3_8b on 256 chips; compiles for a minute."""
    needs_libtpu()
    experiment = compose(POD.split())
    blueprint, _, found = compile_for(experiment, experiment.verify.topology)
    return experiment, blueprint, found


@pytest.mark.slow
@patient
def test_llama3_8b_sends_what_theory_asks_for() -> None:
    """By axes and kind within 10 %, and together; a kind that theory knows nothing of stays below 0.1 % of all."""
    experiment, blueprint, found = pod()
    rows = traffic_rows(found, least_traffic(experiment, blueprint))
    sent, least = (sum(row) for row in zip(*((t.sent_bytes, asked) for t, asked in rows.values()), strict=True))
    assert 0.99 < sent / least < 1.10
    for name, (traffic, asked) in rows.items():
        if asked > 1e-4 * least:
            assert 0.99 < traffic.sent_bytes / asked < 1.10, name
        elif not asked:
            assert traffic.sent_bytes < 1e-3 * least, name
    assert total(found, "kind").get((SLICED,)) is None, "a scatter over several torus dimensions became an all-reduce"


@pytest.mark.slow
@patient
def test_no_gradient_of_a_weight_is_reduced_whole() -> None:
    """What is all-reduced over all devices, or over fsdp, are norms and scalars."""
    _, blueprint, found = pod()
    norm = blueprint.model_config.embed_dim
    for one in found:
        if one.kind in ("all-reduce", SLICED) and "fsdp" in one.axes:
            assert max((math.prod(shape) for shape in one.shapes), default=0) <= norm, one


@pytest.mark.slow
@patient
def test_kernels_are_gathered_layer_by_layer() -> None:
    """fsdp: all seven, inside the loops over layers, forward and backward; only ends of the model outside."""
    _, blueprint, found = pod()
    layers, model = blueprint.model_config.num_layers, blueprint.model_config
    gathers = [one for one in found if one.kind == "all-gather" and one.axes == ("fsdp",)]
    inside = [one for one in gathers if one.looped]
    assert sum(one.times for one in inside) == 2 * 7 * layers
    assert {one.times for one in inside} == {layers}
    assert max(math.prod(shape) for one in inside for shape in one.shapes) == model.embed_dim * model.mlp_dim // 4
    head = model.vocab_size // 4 * model.embed_dim
    assert max(math.prod(shape) for one in gathers for shape in one.shapes) == head
    scatters = [one for one in found if one.kind == "reduce-scatter" and one.axes == ("fsdp",) and one.looped]
    assert sum(len(one.shapes) * one.times for one in scatters) == 7 * layers
    assert {axis for one in found for axis in one.axes} == AXES


@pytest.mark.slow
@patient
def test_from_the_verb(capsys: pytest.CaptureFixture) -> None:
    """A small step on a small slice: the table."""
    needs_libtpu()
    words = """run.name=x model=llama3_8b model.num_layers=2 model.embed_dim=512 model.num_heads=4 model.num_kv_heads=4
        model.mlp_dim=1024 model.vocab_size=1024 data.seq_len=256 train.batch_size=8 model.remat=names
        verify.topology=v5e:2x4 mesh.data=1 mesh.fsdp=4 mesh.tensor=2"""
    assert verify(compose(words.split())) == 0
    out = capsys.readouterr().out
    assert "fsdp=4 x tensor=2" in out
    assert "reduce-scatter" in out
    assert "nothing was run" in out


def test_a_vocabulary_of_the_tokenizers_is_refused() -> None:
    needs_libtpu()
    with pytest.raises(ConfigError, match=r"model\.vocab_size=0"):
        verify(compose([*POD.split(), "model.vocab_size=0"]))
