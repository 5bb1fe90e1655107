"""Folders out and in again, sharded or not; what is refused, and what a broken export leaves."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from models.families import KINDS
from safetensors.numpy import load_file, save_file

from helpers import MESHES, ROOT, params_of, rotated, tiny_config
from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.families import BERTConfig, GPTConfig
from lmkit.config.sections.model import Activation, Norm, Position
from lmkit.interop import load_params, read_config, save_folder
from lmkit.interop.families import FAMILIES, family_for, family_of
from lmkit.interop.source import SafetensorsSource
from lmkit.interop.table import unlike
from lmkit.models import build_model
from lmkit.nn.param import param_specs
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of

LLAMA = tiny_config(gated=True, num_kv_heads=2)
# One that each table can say; the names of kinds in models/families.py stand for what they resemble.
SAYABLE: dict[str, Any] = {
    "llama": LLAMA,
    "mixtral": tiny_config(gated=True, num_experts=4, capacity_factor=1.0, balance_loss=0.1, router_z_loss=0.1),
    "gpt2": tiny_config(
        position=Position.learned, norm=Norm.layernorm, bias=True, tie_embeddings=True, activation=Activation.gelu_tanh
    ),
    "bert": KINDS["bert"].config,
    "modernbert": dataclasses.replace(KINDS["modernbert"].config, norm_eps=1e-5),
    "whisper": dataclasses.replace(KINDS["whisper"].config, norm_eps=1e-5),
    "t5": dataclasses.replace(KINDS["t5"].config, head_scale=1.0, norm_eps=1e-6),
    "vit": KINDS["vit"].config,
}


def random_params(config: Any, seed: int = 0) -> tuple[Any, Any]:
    _, shapes = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    return shapes, jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def same_trees(one: Any, other: Any) -> None:
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", SAYABLE)
def test_out_and_in_again(name: str, tmp_path: Path) -> None:
    config = SAYABLE[name]
    shapes, params = random_params(config)
    seen: list[tuple[int, int]] = []
    assert save_folder(tmp_path / "out", config, params, shard_bytes=100_000) == name
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    back = read_config(tmp_path / "out")
    assert unlike(config, back) == []
    same_trees(params, load_params(tmp_path / "out", back, shapes, lambda done, total: seen.append((done, total))))
    assert seen[-1][0] == seen[-1][1] == 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(("name", "mesh_name"), rotated(
    ((name, mesh_name) for name in ("gpt2", "mixtral", "t5", "vit") for mesh_name in MESHES),
    ("gpt2", "fsdp8"), ("mixtral", "data2_fsdp2_tensor2"), ("t5", "data2_fsdp2_tensor2"), ("vit", "data8"),
))  # fmt: skip
def test_straight_into_sharded_arrays(name: str, mesh_name: str, tmp_path: Path) -> None:
    """Each device gets its part of what one device would get, and export gathers it again."""
    config = SAYABLE[name]
    shapes, params = random_params(config)
    save_folder(tmp_path / "out", config, params)
    mesh = build_mesh(compose(["run.name=x", "model.num_heads=4", *MESHES[mesh_name]]).mesh)
    specs = param_specs(nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[1])
    placed = jax.tree.map(
        lambda s, spec: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding_of(spec.dims, mesh, s.shape)),
        shapes, specs,
    )  # fmt: skip
    loaded = load_params(tmp_path / "out", config, placed)
    for leaf, shape in zip(jax.tree.leaves(loaded), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding == shape.sharding
    same_trees(params, loaded)
    save_folder(tmp_path / "again", config, loaded)
    same_trees(load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors"))


def test_bfloat16_files(tmp_path: Path) -> None:
    shapes, params = random_params(LLAMA)
    save_folder(tmp_path / "out", LLAMA, params, dtype="bfloat16")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == ml_dtypes.bfloat16
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    same_trees(rounded, load_params(tmp_path / "out", LLAMA, shapes))


def test_tensors_are_rounded_before_they_are_placed(tmp_path: Path) -> None:
    shapes, params = random_params(LLAMA)
    save_folder(tmp_path / "out", LLAMA, params)
    half = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jax.numpy.bfloat16), shapes)
    loaded = load_params(tmp_path / "out", LLAMA, half)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"bfloat16"}
    same_trees(jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params), loaded)


def edited(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_wrong_tensors_are_named_with_both_shapes(tmp_path: Path) -> None:
    shapes, params = random_params(LLAMA)
    save_folder(tmp_path / "out", LLAMA, params)

    def change(tensors: dict) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.1.extra.weight"] = np.zeros((3, 2), np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((5, 64), np.float32)

    edited(tmp_path / "out", change)
    with pytest.raises(ConfigError) as error:
        load_params(tmp_path / "out", LLAMA, shapes)
    message = str(error.value)
    assert "missing: model.norm.weight [64] (for norm.scale)" in message
    assert "extra: model.layers.1.extra.weight [3, 2]" in message
    assert "model.layers.0.mlp.up_proj.weight [5, 64] instead of [256, 64]" in message


def test_a_bias_that_lmkit_has_not_must_be_zero(tmp_path: Path) -> None:
    from lmkit.config.sections.families import EncDecConfig

    config = EncDecConfig(
        vocab_size=32, num_layers=1, num_heads=2, embed_dim=16, position=Position.learned, position_offset=2,
        embed_norm=True, activation=Activation.gelu,
    )  # fmt: skip
    shapes, params = random_params(config)
    assert save_folder(tmp_path / "out", config, params) == "bart"
    load_params(tmp_path / "out", config, shapes)
    edited(tmp_path / "out", lambda tensors: tensors["final_logits_bias"].__setitem__((0, 3), 1.0))
    with pytest.raises(ConfigError, match=r"final_logits_bias \[1, 32\], which is not zero"):
        load_params(tmp_path / "out", config, shapes)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "llame"}, ["'llame'", "'llama'"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["'yarn'", "llama3"]),
        ({"hidden_act": "mish"}, ["'mish'", "silu"]),
        ({"attention_bias": True}, ["attention_bias=True", "mlp_bias=False"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, ["original_max_position_embeddings"]),
        ({"pretraining_tp": 2}, ["pretraining_tp=2", "1"]),
    ],
)
def test_configurations_that_lmkit_cannot_compute(change: dict, expected: list[str], tmp_path: Path) -> None:
    _, params = random_params(LLAMA)
    save_folder(tmp_path / "out", LLAMA, params)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError) as error:
        read_config(tmp_path / "out")
    assert all(word in str(error.value) for word in expected), str(error.value)


def test_models_that_no_family_computes_are_refused(tmp_path: Path) -> None:
    config = tiny_config(gated=True, qk_norm=True, attention_softcap=3.0)
    _, params = random_params(config)
    with pytest.raises(ConfigError, match=r"nearest is: qwen3 has no way to say model.attention_softcap=3.0"):
        save_folder(tmp_path / "out", config, params)
    shared = tiny_config(gated=True, num_experts=4, shared_experts=1)
    with pytest.raises(ConfigError, match=r"no way to say model.shared_experts=1"):
        save_folder(tmp_path / "out", shared, random_params(shared)[1])
    with pytest.raises(ConfigError, match="BertForMaskedLM"):
        family_for(BERTConfig(vocab_size=32, num_layers=1, num_heads=2, embed_dim=16))
    assert list(tmp_path.iterdir()) == []


def test_what_is_absent_means_what_the_family_means(tmp_path: Path) -> None:
    """Absent is the family's default, null is off."""
    gemma = {
        "model_type": "gemma2", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    absent = family_of(gemma).read_config(gemma)
    assert (absent.attention_softcap, absent.logit_softcap, absent.sliding_window) == (50.0, 30.0, 4096)
    null = family_of(gemma).read_config(gemma | dict.fromkeys(("attn_logit_softcapping", "sliding_window")))
    assert (null.attention_softcap, null.logit_softcap, null.sliding_window) == (0.0, 30.0, 0)
    three = family_of({"model_type": "gemma3_text"}).read_config(gemma | {"model_type": "gemma3_text"})
    assert (three.rope_theta, three.rope_local_theta, three.attention_softcap) == (1e6, 1e4, 0.0)
    mixtral = family_of({"model_type": "mixtral"}).read_config(gemma | {"model_type": "mixtral"})
    assert (mixtral.rope_theta, mixtral.norm_eps, mixtral.sliding_window) == (1e6, 1e-5, 0)


def test_a_bert_file_with_more_heads_than_its_class_and_old_names(tmp_path: Path) -> None:
    """As the released ones are: the class says masked LM, the file has everything, norms have gamma and beta."""
    config = KINDS["bert"].config
    shapes, params = random_params(config)
    save_folder(tmp_path / "out", config, params)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertForMaskedLM"]}))
    weights = tmp_path / "out" / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(weights)
    for new, former in old.items():
        tensors = {name.replace(new, former): value for name, value in tensors.items()}
    save_file(tensors, weights)
    back = read_config(tmp_path / "out")
    assert back.pooler
    assert back.next_sentence_head
    same_trees(params, load_params(tmp_path / "out", back, shapes))


def test_a_configuration_of_another_kind_is_refused(tmp_path: Path) -> None:
    shapes, params = random_params(LLAMA)
    save_folder(tmp_path / "out", LLAMA, params)
    with pytest.raises(ConfigError, match="a llama is a GPTConfig, not a BERTConfig"):
        load_params(tmp_path / "out", BERTConfig(vocab_size=9), shapes)
    with pytest.raises(ConfigError, match="no tensors for head.table"):
        load_params(tmp_path / "out", dataclasses.replace(LLAMA, tie_embeddings=True), shapes)


def test_places_that_are_taken_empty_or_damaged(tmp_path: Path) -> None:
    shapes, params = random_params(LLAMA)
    save_folder(tmp_path / "out", LLAMA, params)
    with pytest.raises(ConfigError, match="exists already"):
        save_folder(tmp_path / "out", LLAMA, params)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        read_config(tmp_path)
    with pytest.raises(ConfigError, match="dtype=int8"):
        save_folder(tmp_path / "other", LLAMA, params, dtype="int8")
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="fetch it again"):
        load_params(tmp_path / "out", LLAMA, shapes)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"no \.safetensors"):
        load_params(tmp_path / "out", LLAMA, shapes)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..", "", "a\0b", 7]
)
def test_an_index_names_files_beside_it(name: Any, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"secret")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ConfigError, match=r"index.json: .* is in .*, which is no file of this folder"):
        SafetensorsSource(tmp_path / "m")


def test_a_lost_file_of_several_is_named(tmp_path: Path) -> None:
    shapes, params = random_params(LLAMA)
    save_folder(tmp_path / "out", LLAMA, params, shard_bytes=100_000)
    sorted((tmp_path / "out").glob("*.safetensors"))[1].unlink()
    with pytest.raises(ConfigError, match=r"model-00002-of-\d+\.safetensors"):
        load_params(tmp_path / "out", LLAMA, shapes)


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, params = random_params(LLAMA)
    written = []

    def full(tensors, path, metadata):
        if written:
            raise OSError(28, "No space left on device")
        written.append(save_file(tensors, path, metadata=metadata))

    monkeypatch.setattr("lmkit.interop.save.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_folder(tmp_path / "out", LLAMA, params, shard_bytes=100_000)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """SIGKILL while the weights are written: no folder of that name, no config.json; the next export tidies up."""
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests")!r})
from interop.test_exchange import LLAMA, random_params
from lmkit.interop import save_folder
save_folder({str(tmp_path / "out")!r}, LLAMA, random_params(LLAMA)[1], shard_bytes=20_000,
            progress=lambda done, total: (print("wrote", flush=True), time.sleep(0.2)))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "wrote\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("out.partial-")
    assert not (left / "config.json").exists()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        read_config(left)
    save_folder(tmp_path / "out", LLAMA, random_params(LLAMA)[1])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_tokenizer_files_come_along(tmp_path: Path) -> None:
    from lmkit.config.sections.tokenizer import TokenizerConfig
    from lmkit.data.tokens.vocabulary import train_bpe

    train_bpe(["some words and some more words"] * 50, TokenizerConfig(vocab_size=270)).save(
        tmp_path / "tokenizer.json"
    )
    _, params = random_params(LLAMA)
    save_folder(tmp_path / "out", LLAMA, params, tokenizer=tmp_path / "tokenizer.json")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert "tokenizer_class" in (tmp_path / "out" / "tokenizer_config.json").read_text()
    save_folder(tmp_path / "again", LLAMA, params, tokenizer=tmp_path / "out")
    assert (tmp_path / "again" / "tokenizer.json").exists()
    with pytest.raises(ConfigError, match="no tokenizer files"):
        save_folder(tmp_path / "third", LLAMA, params, tokenizer=tmp_path / "nowhere")
    assert not (tmp_path / "third").exists()


def test_each_table_names_its_model_type_once() -> None:
    kinds = [family.model_type for family in FAMILIES]
    assert len(set(kinds)) == len(kinds)
    assert GPTConfig in {family.schema for family in FAMILIES}
