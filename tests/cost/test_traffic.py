"""What theory asks for, against figures worked out by hand."""

from collections import defaultdict

import pytest

from lmkit.config.entry import compose
from lmkit.core.state import make_blueprint
from lmkit.cost.traffic import Least, least_traffic
from lmkit.parallel.mesh import build_mesh

# one layer: q, k, v, out 16 x 16 each, up and down 16 x 64 each; head and embedding 32 x 16; 3 norms of 16
SMALL = """run.name=x model=gpt2_124m model.vocab_size=32 model.embed_dim=16 model.num_heads=4 model.bias=false
    model.position=none model.tie_embeddings=false model.norm=rmsnorm model.max_seq_len=8 data.seq_len=8
    train.batch_size=8 model.dtype=float32"""
KERNELS, HEAD, NORMS = 4 * 16 * 16 + 2 * 16 * 64, 32 * 16, 3 * 16


def least(*words: str) -> list[Least]:
    experiment = compose([*SMALL.split(), "model.num_layers=1", *words])
    mesh = build_mesh(experiment.mesh)
    blueprint = make_blueprint(experiment.model, experiment.optim, 10, mesh, experiment.lora)
    return least_traffic(experiment, blueprint)


def summed(rows: list[Least]) -> dict[tuple, float]:
    sums: dict[tuple, float] = defaultdict(float)
    for row in rows:
        sums[(*row.axes, row.kind)] += row.sent_bytes
    return dict(sums)


def test_data_sums_every_gradient_once() -> None:
    assert summed(least("mesh.data=8")) == {
        ("data", "all-reduce"): pytest.approx(2 * 4 * (KERNELS + 2 * HEAD + NORMS) * 7 / 8)
    }  # fmt: skip


def test_data_waits_for_the_last_micro_batch() -> None:
    """Other axes do not: theirs is once a micro-batch, beside a pipeline that of data, too."""
    words = ["train.accumulate_steps=4", "train.batch_size=32"]
    found = summed(least("mesh.data=2", "mesh.context=4", *words))
    shared = KERNELS + 2 * HEAD + NORMS
    assert found["data", "all-reduce"] == pytest.approx(2 * 4 * shared / 2)
    assert found["context", "all-reduce"] == pytest.approx(4 * 2 * 4 * shared * 3 / 4)
    piped = summed(least("mesh.data=4", "mesh.stage=2", "model.num_layers=2", *words))
    assert piped["data", "all-reduce"] == pytest.approx(4 * 2 * 4 * (KERNELS + 2 * 16) * 3 / 4)
    assert piped["stage", "data", "all-reduce"] > 4 * 2 * 4 * 2 * HEAD * 7 / 8


@pytest.mark.parametrize(("words", "gathers", "scatters"), [
    (["model.remat=full"], 2, 1),
    (["model.scan_layers=false", "model.remat=none"], 1, 1),
    (["model.remat=full", "train.accumulate_steps=2", "train.batch_size=16"], 4, 2),
])  # fmt: skip
def test_fsdp_gathers_and_scatters(words: list[str], gathers: int, scatters: int) -> None:
    found = summed(least("mesh.data=1", "mesh.fsdp=8", *words))
    micro, rows = scatters, 2 if scatters == 2 else 1
    ids, stream = rows * 8 * 8 * 4 * 7 / 8, rows * 8 * 16 * 4
    assert found["fsdp", "all-gather"] == pytest.approx(4 * (gathers * KERNELS + micro * HEAD) * 7 / 8 + ids)
    assert found["fsdp", "reduce-scatter"] == pytest.approx(4 * scatters * (KERNELS + HEAD) * 7 / 8)
    assert found["fsdp", "all-to-all"] == pytest.approx(2 * stream * 7 / 8)
    assert found["fsdp", "all-reduce"] == pytest.approx(micro * 2 * 4 * NORMS * 7 / 8)


@pytest.mark.parametrize(("remat", "gathers", "scatters"), [
    ("none", 4, 4), ("dots", 6, 4), ("names", 6, 4), ("full", 6, 5)
])  # fmt: skip
def test_tensor_moves_the_stream(remat: str, gathers: int, scatters: int) -> None:
    """Two gathers and two scatters a layer and direction, what remat repeats, and the two ends."""
    found = summed(least("mesh.data=1", "mesh.tensor=4", "mesh.fsdp=2", f"model.remat={remat}"))
    one = 4 * 8 * 16 * 4 * 3 / 4  # rows x length x width x bytes
    assert found["tensor", "all-gather"] == pytest.approx((gathers + 2) * one)
    assert found["tensor", "reduce-scatter"] == pytest.approx((scatters + 2) * one)
    assert found["tensor", "all-reduce"] == pytest.approx(2 * 3 * 4 * 8 * 4 * 3 / 4)
    assert found["fsdp", "tensor", "all-reduce"] == pytest.approx(2 * 4 * NORMS * 7 / 8)


def test_an_odd_length_is_summed_whole() -> None:
    """Patches of an image that tensor does not divide: the stream is not split, so it is all-reduced."""
    words = "run.name=x model=vit_ti16 model.num_heads=4 model.embed_dim=32 model.image_size=32 model.num_classes=4"
    experiment = compose([*words.split(), "objective=classify", "mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2",
                          "model.num_layers=1", "train.batch_size=8", "model.dtype=float32"])  # fmt: skip
    blueprint = make_blueprint(experiment.model, experiment.optim, 10, build_mesh(experiment.mesh))
    found = summed(least_traffic(experiment, blueprint))
    assert found["tensor", "all-reduce"] == pytest.approx(
        2 * 4 * (2 * 5 * 32 * 4) / 2
    )  # four patches and a class token
    assert ("tensor", "all-gather") not in found


def test_the_frozen_have_no_gradient() -> None:
    found = summed(least("mesh.data=1", "mesh.fsdp=8", "optim.freeze=[stack]"))
    assert found["fsdp", "reduce-scatter"] == pytest.approx(4 * HEAD * 7 / 8)
    assert found["fsdp", "all-gather"] > 2 * 4 * KERNELS * 7 / 8


def test_bfloat16_halves_what_travels() -> None:
    words = ["mesh.data=1", "mesh.fsdp=8"]
    whole, half = (summed(least(*words, f"model.dtype={dtype}")) for dtype in ("float32", "bfloat16"))
    assert half["fsdp", "reduce-scatter"] == whole["fsdp", "reduce-scatter"] / 2
    assert half["fsdp", "all-reduce"] == whole["fsdp", "all-reduce"]


def test_muon_deals_its_matrices_out_and_back() -> None:
    """By hand: of the 4 of 16 x 16 and the 2 of 16 x 64 each device takes one, and of a fourth filled up none."""
    words = ["mesh.data=2", "mesh.fsdp=4", "model.num_layers=1"]
    plain, muon = summed(least(*words)), summed(least(*words, "optim=muon"))
    square, wide = 4 * 16 * 16 * 4 / 4, 4 * 16 * 64 * 4 / 4  # of four on four devices, a device's pieces
    assert muon["fsdp", "all-to-all"] - plain["fsdp", "all-to-all"] == pytest.approx(2 * (square + wide) * 3 / 4)
    alone = summed(least("mesh.data=4", "mesh.fsdp=2", "optim=muon", "optim.freeze=[stack.blocks.mlp.up]"))
    assert alone["fsdp", "all-gather"] - summed(least("mesh.data=4", "mesh.fsdp=2"))["fsdp", "all-gather"] == (
        pytest.approx(4 * 16 * 64 / 2)
    )  # one matrix: every device takes all of it
