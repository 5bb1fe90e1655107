"""Every family passes on meshes that split everything; planted errors are caught, and named where they begin."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lmkit.config import ConfigError
from lmkit.config.entry import compose, run_verb
from lmkit.config.sections.model import DType
from lmkit.models import build_model  # noqa: F401  (imported first: blocks below are patched in place)
from lmkit.nn import block, embed, pipeline
from lmkit.nn.dropout import dropout as true_dropout
from lmkit.objectives import cross_entropy as ce
from lmkit.objectives.sums import Sums
from lmkit.parallel import expert
from lmkit.verify import compare as compare_module
from lmkit.verify.main import verify
from lmkit.verify.shrink import shrink

ALL = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "run.cpu_devices=8"]
COMMON = ["run.name=x", "optim.warmup_steps=0"]
FAMILIES = {
    "gpt2_124m": ["model.vocab_size=0"],
    "llama3_8b": [],
    "gemma3_1b": ["mesh.tensor=1", "mesh.fsdp=4"],  # one key head
    "mixtral_8x7b": [],
    "bert_base": [
        "objective=masked_lm",
        "data.seq_len=512",
        "model.next_sentence_head=true",
        "objective.next_sentence=true",
    ],
    "modernbert_base": ["objective=masked_lm"],
    "t5_small": ["objective=seq2seq", "data.seq_len=512"],
    "bart_base": ["objective=span_corruption", "data.seq_len=512", "model.vocab_size=0"],
    "whisper_tiny": ["objective=seq2seq", "data.seq_len=448", "model.vocab_size=0"],
    "vit_ti16": ["objective=classify", "mesh.tensor=1", "mesh.fsdp=4"],  # three heads
    "clip_vit_b32": ["objective=contrastive", "data.seq_len=77", "mesh.tensor=1", "mesh.fsdp=4"],
}


QUICK = ("gpt2_124m", "t5_small")


@pytest.mark.parametrize("model", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
])  # fmt: skip
def test_every_family_passes(model: str, capsys: pytest.CaptureFixture) -> None:
    experiment = compose([*COMMON, *ALL, f"model={model}", *FAMILIES[model]])
    assert verify(experiment) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "equal" in out
    assert "collectives" in out


def test_dropout_accumulation_and_lora_pass(capsys: pytest.CaptureFixture) -> None:
    words = [
        "model=gpt2_124m",
        "model.vocab_size=0",
        "model.dropout=0.1",
        "train.accumulate_steps=2",
        "lora.rank=4",
        "init_from=x",
    ]
    assert verify(compose([*COMMON, *ALL, *words])) == 0, capsys.readouterr().out


GPT = [*COMMON, *ALL, "model=gpt2_124m", "model.vocab_size=0"]


MIXTURE = [*COMMON, "model=mixtral_8x7b", "run.cpu_devices=8", "model.shared_experts=1", "model.balance_loss=0.5",
           "model.router_z_loss=0.3"]  # fmt: skip


@pytest.mark.parametrize(("factor", "words"), [
    (0.6, "mesh.data=2 mesh.expert=2"),
    pytest.param(0.6, "mesh.data=2 mesh.expert=2 mesh.tensor=2 train.accumulate_steps=2", marks=pytest.mark.slow),
    *(
        pytest.param(factor, words, marks=pytest.mark.slow)
        for factor in (0.0, 0.6)
        for words in (
            "mesh.data=1 mesh.expert=2",
            "mesh.data=1 mesh.expert=2 mesh.fsdp=2",
            "mesh.data=1 mesh.fsdp=2 mesh.expert=4",
            "mesh.data=1 mesh.expert=2 mesh.tensor=2",
            "mesh.data=2 mesh.expert=2 mesh.tensor=2",
        )
    ),
])  # fmt: skip
def test_experts_pass_over_their_axis(factor: float, words: str, capsys: pytest.CaptureFixture) -> None:
    experiment = compose([*MIXTURE, f"model.capacity_factor={factor}", *words.split()])
    assert verify(experiment) == 0, capsys.readouterr().out
    found = "all-to-all" in capsys.readouterr().out
    assert found == (factor > 0 or "fsdp" in words)  # over fsdp the look-up of embeddings has one, too


@pytest.mark.slow
def test_experts_of_other_devices_left_out_are_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Each device keeps what its own experts made of its own tokens."""

    def own(x: jax.Array, axis: str, *, scatter_dimension: int, tiled: bool) -> jax.Array:
        size = x.shape[scatter_dimension] // jax.lax.axis_size(axis)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size, scatter_dimension)

    monkeypatch.setattr(expert, "lax", SimpleNamespace(**{**vars(jax.lax), "psum_scatter": own}))
    assert verify(compose([*MIXTURE, "mesh.data=1", "mesh.expert=2"])) == 1
    assert "DIFFERENT" in capsys.readouterr().out


STAGES = [*COMMON, "mesh.data=1", "mesh.stage=2", "mesh.fsdp=2", "run.cpu_devices=8", "model.dropout=0.1"]


@pytest.mark.parametrize("words", [
    ["model=gpt2_124m", "model.vocab_size=0", "mesh.stage=4"],
    pytest.param(["model=mixtral_8x7b", "model.rounds=2", "model.microbatches=2"], marks=pytest.mark.slow),
    pytest.param(["model=llama3_8b", "mesh.tensor=2", "train.accumulate_steps=2"], marks=pytest.mark.slow),
    pytest.param(["model=gemma3_1b", "mesh.fsdp=1", "mesh.data=2"], marks=pytest.mark.slow),
    pytest.param(["model=t5_small", "objective=seq2seq", "data.seq_len=512"], marks=pytest.mark.slow),
    pytest.param(["model=modernbert_base", "objective=masked_lm", "model.num_layers=21"], marks=pytest.mark.slow),
    pytest.param(["model=whisper_tiny", "objective=seq2seq", "data.seq_len=448", "model.vocab_size=0", "mesh.tensor=2"],
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_stages_pass(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert verify(compose([*STAGES, *words])) == 0, capsys.readouterr().out
    assert "the bubble is" in capsys.readouterr().out


def test_rows_that_come_back_to_other_places_are_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    true = pipeline._scatter
    monkeypatch.setattr(pipeline, "_scatter", lambda x, stages: true(x[::-1], stages))
    assert verify(compose([*STAGES, "model=gpt2_124m", "model.vocab_size=0", "mesh.fsdp=1"])) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_a_missing_sum_is_caught(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(ce, "BATCH_AXES", ("fsdp",))  # the sums of the other replicas are left out
    assert verify(compose(GPT)) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_a_loss_counted_twice_is_caught(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(ce, "BATCH_AXES", ("data", "fsdp", "tensor"))  # each half of the vocabulary adds the whole
    assert verify(compose(GPT)) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_a_mean_of_means_is_caught(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Each device's loss divided by its own weight: wrong as soon as masks are uneven."""
    true = compare_module.build_objective

    def build(config: Any) -> Any:
        objective = true(config)

        def by_device(model: Any, batch: Any, key: Any) -> Any:
            mesh = jax.sharding.get_abstract_mesh()
            groups = mesh.shape.get("data", 1) * mesh.shape.get("fsdp", 1)
            per_row = jnp.sum(batch["weights"], axis=1).reshape(groups, -1)
            own = jnp.repeat(jnp.sum(per_row, axis=1), per_row.shape[1], out_sharding=None) if groups == 1 else None
            if own is None:
                flat = jax.sharding.reshard(batch["weights"], jax.sharding.PartitionSpec())
                sums = jnp.sum(flat.reshape(groups, -1), axis=1)
                own = jnp.repeat(sums, flat.shape[0] // groups)
            weights = batch["weights"] / jax.sharding.reshard(own[:, None], jax.sharding.PartitionSpec())
            sums, extra = objective(model, batch | {"weights": weights}, key)
            return Sums(sums.loss, sums.weight, sums.nll, sums.correct), extra

        return by_device

    monkeypatch.setattr(compare_module, "build_objective", build)
    assert verify(compose(GPT)) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_dropout_that_depends_on_the_device_is_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def planted(x: jax.Array, rate: float, key: Any, dims: Any, rows_B: Any = None) -> jax.Array:
        spec = jax.typeof(x).sharding.spec
        if key is None or not any(spec):
            return true_dropout(x, rate, key, dims, rows_B)

        def local(x: jax.Array, key: jax.Array) -> jax.Array:
            own = jax.random.fold_in(key, jax.lax.axis_index("data"))
            return jnp.where(jax.random.bernoulli(own, 1 - rate, x.shape), x / (1 - rate), 0)

        return jax.shard_map(local, in_specs=(spec, jax.sharding.PartitionSpec()), out_specs=spec, check_vma=False)(
            x, key
        )

    for module in (block, embed):
        monkeypatch.setattr(module, "dropout", planted)
    assert verify(compose([*GPT, "model.dropout=0.2"])) == 1
    out = capsys.readouterr().out
    assert "the first to depart is embed" in out


@pytest.mark.parametrize("model", FAMILIES)
def test_the_structure_is_kept(model: str) -> None:
    experiment = compose([*COMMON, f"model={model}", *FAMILIES[model]])
    sizes = {"data": 2, "fsdp": 2, "tensor": 2 if "mesh.tensor=1" not in FAMILIES[model] else 1}
    small = shrink(experiment, sizes)
    free = {"num_layers", "num_heads", "num_kv_heads", "head_dim", "embed_dim", "mlp_dim", "vocab_size", "max_seq_len",
            "dtype", "scan_layers", "sliding_window", "num_experts", "patch_size", "image_size", "num_classes",
            "num_decoder_layers", "num_mels", "max_source_len"}  # fmt: skip
    for name, part in experiment.model.towers().items():
        tiny = small.model.towers()[name]
        for field in dataclasses.fields(part):
            if field.name not in free:
                assert getattr(tiny, field.name) == getattr(part, field.name), field.name
        assert (tiny.num_heads == tiny.kv_heads) == (part.num_heads == part.kv_heads)
        assert bool(tiny.sliding_window) == bool(part.sliding_window)
        assert bool(tiny.num_experts) == bool(part.num_experts)
        assert tiny.dtype is DType.float32
        assert {tiny.window_of(n) > 0 for n in range(tiny.num_layers)} == {
            part.window_of(n) > 0 for n in range(part.num_layers)
        }


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["+experiment=gpt_tiny", "run.cpu_devices=8", "mesh.data=1", "mesh.fsdp=8"]
    assert run_verb("verify", "lmkit.verify.main:verify", "about", words) == 0
    out = capsys.readouterr().out
    assert "fsdp=8" in out
    rows = {tuple(line.split()[:2]): line.split() for line in out.splitlines() if line.split()[:1] == ["fsdp"]}
    assert float(rows["fsdp", "all-to-all"][-1]) == 1.0  # of the embedding's rows: what is sent over the least
    assert float(rows["fsdp", "all-gather"][-1]) < 2.0
    assert run_verb("verify", "lmkit.verify.main:verify", "about", ["+experiment=gpt_tiny", "mesh.data=1"]) == 2
    assert "one device" in capsys.readouterr().err


def test_one_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set mesh.data, mesh.fsdp or mesh.tensor"):
        verify(compose([*COMMON, "model=gpt2_124m", "mesh.data=1"]))
