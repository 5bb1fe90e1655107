"""Where parameters come from: runs, LoRA runs, folders; heads that differ; bases that moved or changed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from flax import nnx

from helpers import leaves_equal, params_of, tiny_config, tiny_experiment, train_steps
from lmkit.checkpoint import Checkpoints, load_params
from lmkit.config import ConfigError
from lmkit.config.entry import run_verb
from lmkit.config.saved import read_model, read_tokenizer, write_model
from lmkit.config.sections.checkpoint import CheckpointConfig
from lmkit.config.sections.families import BERTConfig, Pooling, ViTConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.model import DType, Position
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.core.state import evaluation_params
from lmkit.data.tokens.vocabulary import train_bpe
from lmkit.interop import save_folder
from lmkit.models import build_model
from lmkit.nn.tree import flat, union
from lmkit.parallel.mesh import build_mesh
from lmkit.tracker import read_rows
from lmkit.weights import load_start, model_shapes, open_model, start_tokenizer
from lmkit.weights.base import fingerprint, read_base

TINY = ["+experiment=gpt_tiny", "data.holdout_every=300", "tracker=none", "train.sample_tokens=0",
        "train.eval_batches=1", "model.gated=true",
        "train.steps=12", "checkpoint.save_every_steps=6", "train.eval_every_steps=0"]  # fmt: skip
LORA = ["lora.rank=4", "lora.targets=['*.attention','*.mlp']", "optim.learning_rate=0.01", "optim.warmup_steps=2"]


def train(run: Path, *overrides: str) -> int:
    return run_verb("train", "lmkit.train.main:train", "about", [*TINY, f"run.dir={run}", *overrides])


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in read_rows(run / "metrics.jsonl") if "train/loss" in row}


def saved(run: Path, step: int) -> Any:
    import orbax.checkpoint.experimental.v1 as ocp

    return ocp.load(run / "checkpoints" / str(step))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps."""
    run = tmp_path_factory.mktemp("base") / "run"
    assert train(run) == 0
    return run


def test_a_run_leaves_its_model_and_tokenizer(base: Path) -> None:
    model = read_model(base)
    assert (model.vocab_size, model.embed_dim, model.gated) == (264, 64, True)
    assert "lmkit-bytes" in (base / "tokenizer.json").read_text()
    assert read_tokenizer(base) == TokenizerConfig(kind=TokenizerKind.file, path=str(base / "tokenizer.json"))
    assert (base / "tokenizer.yaml").is_file()
    assert not (base / "base.json").exists()


@pytest.mark.parametrize("what", [["optim.freeze=[embed,'*.mlp']", "optim.ema=0.9"], LORA])
def test_resumed_equals_uninterrupted(base: Path, tmp_path: Path, what: list[str], capsys) -> None:
    """Bit for bit, with frozen parts and with LoRA, which saves adapters alone."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for run in (whole, parts):
        assert train(run, f"init_from={base}", *what) == 0
    assert "parameters train" in capsys.readouterr().out
    assert losses(whole) == losses(parts)
    shutil.rmtree(parts / "checkpoints" / "12")
    assert train(parts, f"init_from={base}", *what) == 0
    assert "resumed at step 6" in capsys.readouterr().out
    assert losses(whole) == losses(parts)
    one, two = saved(whole, 12), saved(parts, 12)
    assert leaves_equal(one, two)
    if what is LORA:
        assert set(one) == {"step", "params", "opt"}
        assert all(".lora_" in path for path in flat(one["params"]))
        assert one["params"]["stack"]["blocks"]["mlp"]["gate"]["lora_a"]["kernel"].shape == (2, 64, 4)
        big, small = (sum(p.stat().st_size for p in (run / "checkpoints" / "12").rglob("*") if p.is_file())
                      for run in (base, whole))  # fmt: skip
        assert small < big / 2
    else:
        start = saved(base, 12)["params"]
        assert set(one) == {"step", "params", "opt", "ema", "frozen"}
        assert leaves_equal(one["frozen"]["embed"], start["embed"])
        assert not np.allclose(one["params"]["head"]["table"], start["head"]["table"])


@pytest.mark.slow
def test_a_lora_run_is_a_source_like_any_other(base: Path, tmp_path: Path) -> None:
    """Its folded parameters start a run at the loss it had; chained, too; exported they are the same."""
    run, second = tmp_path / "lora", tmp_path / "second"
    assert train(run, f"init_from={base}", *LORA) == 0
    model = open_model(str(run)).config
    found = open_model(str(run)).params()
    params = found.params
    before = open_model(str(base)).params().params
    assert set(flat(params)) == set(flat(before)) == set(flat(model_shapes(model)))
    moved = {path for path, leaf in flat(params).items() if not np.array_equal(leaf, flat(before)[path])}
    assert moved == {p for p in flat(params) if p.endswith(".kernel")}
    trained, scale = saved(run, 12)["params"], 16 / 4
    pair = flat(trained)["stack.blocks.mlp.up.lora_a.kernel"], flat(trained)["stack.blocks.mlp.up.lora_b.kernel"]
    by_hand = flat(before)["stack.blocks.mlp.up.kernel"] + scale * np.einsum("lir,lro->lio", *pair)
    np.testing.assert_allclose(flat(params)["stack.blocks.mlp.up.kernel"], by_hand, atol=1e-6)
    assert found.path == run / "checkpoints" / "12"

    frozen = ["lora.rank=2", "optim.learning_rate=0", "train.steps=1"]  # its first loss is that of the start
    assert train(second, f"init_from={run}", *frozen, "optim.warmup_steps=0") == 0
    folder = tmp_path / "folder"
    save_folder(folder, model, params)
    assert train(tmp_path / "third", f"init_from={folder}", *frozen, "optim.warmup_steps=0") == 0
    assert losses(second)[1] == losses(tmp_path / "third")[1]
    assert losses(second)[1] < losses(base)[1] - 0.5
    assert leaves_equal(open_model(str(second)).params().params, params), (
        "a chain of two, and B is still zero in the second"
    )


@pytest.mark.slow
def test_a_base_that_moved_changed_or_went(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, run = tmp_path / "first", tmp_path / "lora"
    shutil.copytree(base, first)
    assert train(run, f"init_from={first}", *LORA, "train.steps=6") == 0
    first.rename(tmp_path / "moved")
    capsys.readouterr()
    assert train(run, f"init_from={first}", *LORA) == 2
    assert "which are gone: put them back, or resume it with init_from=" in capsys.readouterr().err
    assert train(run, f"init_from={tmp_path / 'moved'}", *LORA, "train.steps=8") == 0
    assert "resumed at step 6" in capsys.readouterr().out
    assert train(tmp_path / "moved", "train.steps=14") == 0  # trains on: its newest checkpoint is another
    capsys.readouterr()
    assert train(run, f"init_from={tmp_path / 'moved'}", *LORA) == 2
    assert "is not what" in capsys.readouterr().err
    changed = json.loads((run / "base.json").read_text()) | {"place": str(base), "fingerprint": "0"}
    (run / "base.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="give init_from= a copy"):
        open_model(str(run)).params()
    (run / "base.json").unlink()
    with pytest.raises(ConfigError, match="hold adapters alone"):
        open_model(str(run)).params()


def test_a_run_from_before_these_keys_still_resumes(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    shutil.copytree(base, run)
    values = yaml.safe_load((run / "config.yaml").read_text())
    del values["lora"], values["export"], values["optim"]["freeze"], values["optim"]["rates"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert train(run) == 0
    del values["optim"]["beta1"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert train(run, "optim.beta1=0.5") == 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim=schedule_free_adamw", "optim.learning_rate=0.02"],
        ["optim=schedule_free_adamw", "optim.learning_rate=0.02", "optim.clip_norm=0"],
        ["optim.ema=0.8", "optim.freeze=[embed]"],
        [],
    ],
)
def test_what_is_evaluated_is_what_is_loaded(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SavedModel.params are those that evaluation has, load_start those that train; with frozen parts, too."""
    _, state, blueprint = train_steps(tiny_experiment(*overrides), 3, num_devices=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig())
    checkpoints.save(3, state)
    checkpoints.close()
    write_model(tmp_path, blueprint.model_config)
    expected, got = flat(evaluation_params(blueprint, state)), flat(open_model(str(tmp_path)).params().params)
    assert set(got) == set(expected)
    for path, leaf in expected.items():
        np.testing.assert_allclose(got[path], leaf, atol=1e-6, err_msg=path)
    _rounded_as_read(str(tmp_path), {path: np.asarray(leaf) for path, leaf in got.items()}, monkeypatch)
    whole = blueprint.param_shapes
    raw = union(state["params"], state.get("frozen", {}))
    assert leaves_equal(load_start(str(tmp_path), blueprint.model_config, whole).params, raw)
    assert leaves_equal(load_params(tmp_path, whole)[0], raw)
    if overrides:
        differs = [path for path in got if not np.allclose(got[path], flat(raw)[path], atol=1e-5)]
        assert differs
        assert not any(path.startswith("embed") for path in differs if "optim.freeze=[embed]" in overrides)


def _rounded_as_read(source: str, exact: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """What generates is read in its own dtypes: no copy in float32 is on the device before."""
    found, load = [], load_start

    def spy(*args, **options):
        found.append(load(*args, **options))
        return found[-1]

    monkeypatch.setattr("lmkit.weights.model.load_start", spy)
    model = open_model(source)
    config = dataclasses.replace(model.config, dtype=DType.bfloat16)
    _, params = dataclasses.replace(model, config=config).for_inference(build_mesh(MeshConfig(), jax.devices()[:1]))
    assert found[0].params is params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16", "float32"}
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(leaf, exact[path].astype(leaf.dtype), err_msg=path)


ENCODER = {"vocab_size": 64, "num_layers": 2, "num_heads": 2, "embed_dim": 16, "max_seq_len": 32}
VISION = {"num_layers": 2, "num_heads": 2, "embed_dim": 16, "image_size": 8, "patch_size": 4, "pooling": Pooling.first,
          "position": Position.learned}  # fmt: skip


def written(kind: str, folder: Path, config: Any) -> tuple[str, Any]:
    """A source of that kind with the parameters of a model of this configuration."""
    params = params_of(build_model(config, nnx.Rngs(3)))[1]
    if kind == "folder":
        save_folder(folder / "there", config, params)
        return str(folder / "there"), params
    run = folder / "run"
    checkpoints = Checkpoints(run / "checkpoints", CheckpointConfig())
    checkpoints.save(1, {"params": params})
    checkpoints.close()
    write_model(run, config)
    return str(run), params


@pytest.mark.parametrize("kind", ["folder", "run"])
def test_heads_may_differ(kind: str, tmp_path: Path) -> None:
    """A masked LM becomes a classifier of three, of four, of tokens; all else is bit for bit what it was."""
    there = BERTConfig(**ENCODER, pooler=False)
    source, params = written(kind, tmp_path / "a", there)
    mine = BERTConfig(**ENCODER, lm_head=False, num_classes=3, dropout=0.1)
    found = load_start(source, mine, model_shapes(mine))
    assert (found.fresh, found.left) == (["classifier", "pooler"], ["lm_head"])
    assert "fresh: classifier, pooler; not taken: lm_head" in found.messages()
    expected = {path: leaf for path, leaf in flat(params).items() if not path.startswith("lm_head")}
    assert set(flat(found.params)) == set(expected)
    assert all(np.array_equal(leaf, expected[path]) for path, leaf in flat(found.params).items())
    same = load_start(source, there, model_shapes(there))
    assert (same.fresh, same.left) == ([], [])
    assert leaves_equal(same.params, params)


@pytest.mark.parametrize("kind", ["folder", "run"])
def test_a_head_of_another_size_starts_afresh(kind: str, tmp_path: Path) -> None:
    source, params = written(kind, tmp_path, ViTConfig(**VISION, num_classes=5))
    for classes, fresh, left in ((7, ["head"], []), (5, [], []), (0, [], ["head"])):
        mine = ViTConfig(**VISION, num_classes=classes)
        found = load_start(source, mine, model_shapes(mine))
        assert (found.fresh, found.left) == (fresh, left)
        assert ("head.kernel" in flat(found.params)) == (classes == 5)
        np.testing.assert_array_equal(
            found.params["patches"]["project"]["kernel"], params["patches"]["project"]["kernel"]
        )
    larger = ViTConfig(**(VISION | {"image_size": 16}), num_classes=5)
    with pytest.raises(ConfigError, match=r"(image_size=8.*image_size=16|\[5, 16\] there and \[17, 16\]).*not resized"):
        load_start(source, larger, model_shapes(larger))


@pytest.mark.parametrize("kind", ["folder", "run"])
def test_anything_else_that_differs_is_refused(kind: str, tmp_path: Path) -> None:
    config = tiny_config(gated=True, qk_norm=True)
    source, _ = written(kind, tmp_path, config)
    for change, words in (
        ({"num_layers": 3}, ["3"]),
        ({"qk_norm": False}, ["q_norm.scale [2, 16] is there and not in this model" if kind == "run" else "qk_norm"]),
        ({"vocab_size": 300}, ["256", "300"]),
        ({"tie_embeddings": True}, ["head.table" if kind == "run" else "tie_embeddings"]),
    ):
        mine = dataclasses.replace(config, **change)
        with pytest.raises(ConfigError) as error:
            load_start(source, mine, model_shapes(mine))
        assert all(word in str(error.value) for word in [*words, f"init_from={source}"]), str(error.value)
    encoder = BERTConfig(**ENCODER)
    with pytest.raises(ConfigError, match="a GPTConfig is there; this model is a BERTConfig"):
        load_start(source, encoder, model_shapes(encoder))


def test_another_arithmetic_over_the_same_shapes_is_told(tmp_path: Path) -> None:
    """A run's parameters may go on under a longer rotary wavelength, and one is told."""
    config = tiny_config()
    source, _ = written("run", tmp_path, config)
    mine = dataclasses.replace(config, rope_theta=500_000.0)
    told = load_start(source, mine, model_shapes(mine)).messages()
    assert "model.rope_theta=10000.0; this one model.rope_theta=500000.0" in told[-1]


def test_a_fresh_head_must_train(tmp_path: Path) -> None:
    from lmkit.config.sections.lora import LoraConfig
    from lmkit.config.sections.mesh import MeshConfig
    from lmkit.config.sections.optim import OptimConfig
    from lmkit.core.setup import check_fresh
    from lmkit.core.state import make_blueprint
    from lmkit.parallel.mesh import build_mesh

    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    mine = BERTConfig(**ENCODER, num_classes=3)
    for optim, lora, words in (
        (OptimConfig(), LoraConfig(rank=2), r"lora.train=\[classifier\]"),
        (OptimConfig(freeze=["classifier.bias"]), LoraConfig(), "take it out of optim.freeze"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_fresh(["classifier"], make_blueprint(mine, optim, 10, mesh, lora))
    check_fresh(["classifier"], make_blueprint(mine, OptimConfig(), 10, mesh, LoraConfig(rank=2, train=["classifier"])))


def test_the_tokenizer_of_a_folder_and_its_end_token(tmp_path: Path) -> None:
    """The default end token where the vocabulary has it, else eos, else sep; one that was asked for stays."""
    train_bpe(["some words and some more words"] * 50, TokenizerConfig(vocab_size=270, end_token="[SEP]")).save(
        tmp_path / "tokenizer.json"
    )
    init, name = TokenizerConfig(kind=TokenizerKind.init), str(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"eos_token": None, "sep_token": {"content": "[SEP]"}}))
    got = start_tokenizer(init, name)
    assert (got.kind, got.path, got.end_token) == (TokenizerKind.file, f"{tmp_path}/tokenizer.json", "[SEP]")
    settings.write_text(json.dumps({"eos_token": "words", "sep_token": "[SEP]"}))
    assert start_tokenizer(init, name).end_token == "[SEP]", "words is not one token here"
    asked = TokenizerConfig(kind=TokenizerKind.init, end_token="some")
    assert start_tokenizer(asked, name).end_token == "some"
    train_bpe(["some words and some more words"] * 50, TokenizerConfig(vocab_size=270)).save(
        tmp_path / "tokenizer.json"
    )
    assert start_tokenizer(init, name).end_token == "<|endoftext|>"
    assert start_tokenizer(TokenizerConfig(), "nowhere") == TokenizerConfig()
    for inside in ("checkpoints", "checkpoints/7"):
        assert start_tokenizer(init, f"{name}/{inside}").path == f"{tmp_path}/tokenizer.json"
    with pytest.raises(ConfigError, match=r"tokenizer=init: init_from=.*no tokenizer.json"):
        start_tokenizer(init, f"{name}/other")  # not of the folder around it


def test_the_fingerprint_is_of_contents(tmp_path: Path) -> None:
    source, _ = written("folder", tmp_path, tiny_config(gated=True))
    first = fingerprint(Path(source))
    shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copyfile)
    assert fingerprint(tmp_path / "copy") == first
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert fingerprint(tmp_path / "copy") != first


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"place": 3}'])
def test_a_damaged_base_is_named(damage: str, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(damage)
    with pytest.raises(ConfigError, match=r"base\.json .*bring the file again|base\.json .*write it anew") as caught:
        read_base(tmp_path)
    assert "\n" not in str(caught.value)
