"""Which tensor of a folder is read: the index decides, ties have several names, nothing is left out in silence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from interop.test_exchange import random_params, same_trees
from safetensors.numpy import load_file, save_file

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import BERTConfig, EncDecConfig, GPTConfig
from lmkit.config.sections.model import Activation, Norm, NormOrder, Position
from lmkit.interop import load_params, read_config, save_folder

SMALL: dict[str, Any] = {"vocab_size": 32, "num_layers": 2, "num_heads": 2, "embed_dim": 16}
LLAMA = GPTConfig(**SMALL, gated=True)
TIED = GPTConfig(**SMALL, gated=True, tie_embeddings=True)
GPT2 = GPTConfig(**SMALL, position=Position.learned, norm=Norm.layernorm, bias=True, tie_embeddings=True)
BART = EncDecConfig(**SMALL, position=Position.learned, position_offset=2, embed_norm=True, activation=Activation.gelu)
T5 = EncDecConfig(
    **SMALL, position=Position.relative, norm=Norm.rmsnorm, norm_order=NormOrder.pre, bias=False,
    attention_scale=1.0, norm_eps=1e-6, head_scale=0.25, activation=Activation.relu,
)  # fmt: skip
WHISPER = EncDecConfig(
    **SMALL, position=Position.learned, norm_order=NormOrder.pre, activation=Activation.gelu,
    key_bias=False, num_mels=4,
)  # fmt: skip
BERT = BERTConfig(**SMALL, pooler=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A llama of one file."""
    save_folder(tmp_path / "out", LLAMA, random_params(LLAMA)[1])
    return tmp_path / "out"


def rewrite(folder: Path, change: Callable[[dict], Any], **metadata: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"} | metadata)


def load(folder: Path, notes: list[str] | None = None) -> Any:
    config = read_config(folder)
    return load_params(folder, config, random_params(config)[0], notes=notes)


def split(folder: Path, stale: float = 1.0) -> list[str]:
    """Two files and an index; the second one has the first tensor, too, times `stale`."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    save_file({name: tensors[name] for name in names[:4]}, folder / "a.safetensors")
    rest = {name: tensors[name] for name in names[4:]} | {names[0]: stale * tensors[names[0]]}
    save_file(rest, folder / "b.safetensors")
    index = {name: "ab"[name not in names[:4]] + ".safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return names


@pytest.mark.parametrize("stale", [1.0, -1.0])
def test_the_index_decides_which_file_a_tensor_is_of(folder: Path, stale: float) -> None:
    whole = load(folder)
    name = split(folder, stale)[0]
    notes: list[str] = []
    same_trees(whole, load(folder, notes))
    assert notes == ([f"b.safetensors has another {name} than a.safetensors, which model.safetensors.index.json names: "
                      f"that of a.safetensors is read"] if stale < 0 else [])  # fmt: skip
    if stale < 0:
        with pytest.warns(UserWarning, match="another"):
            load(folder)


def test_a_tensor_is_missing_from_the_file_that_the_index_names(folder: Path) -> None:
    split(folder)
    tensors = load_file(folder / "a.safetensors")
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "a.safetensors")
    with pytest.raises(ConfigError, match=rf"says that '{name}' is in a\.safetensors, which has no such tensor"):
        load(folder)


def test_files_that_no_index_orders(folder: Path) -> None:
    split(folder, -1.0)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match="another .* and no model.safetensors.index.json says which is right"):
        load(folder)


def test_a_file_that_is_not_read_is_named(folder: Path) -> None:
    save_file({"lora_A": np.ones(2, np.float32)}, folder / "adapter_model.safetensors")
    notes: list[str] = []
    load(folder, notes)
    assert notes == ["not read: adapter_model.safetensors (model.safetensors decides)"]


@pytest.mark.parametrize(("config", "first", "other"), [
    (TIED, "model.embed_tokens.weight", "lm_head.weight"),
    (GPT2, "transformer.wte.weight", "lm_head.weight"),
    (BART, "model.shared.weight", "model.decoder.embed_tokens.weight"),
    (BART, "model.shared.weight", "lm_head.weight"),
    (T5, "shared.weight", "lm_head.weight"),
    (T5, "shared.weight", "decoder.embed_tokens.weight"),
    (WHISPER, "model.decoder.embed_tokens.weight", "proj_out.weight"),
    (BERT, "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
], ids=range(8))  # fmt: skip
def test_a_tied_tensor_under_its_other_name(config: Any, first: str, other: str, tmp_path: Path) -> None:
    """Under the other name alone, under both, and under both with other values: an error."""
    shapes, params = random_params(config)
    save_folder(tmp_path / "out", config, params)
    rewrite(tmp_path / "out", lambda tensors: tensors.update({other: tensors[first].copy()}))
    same_trees(params, load_params(tmp_path / "out", config, shapes))
    rewrite(tmp_path / "out", lambda tensors: tensors.pop(first))
    same_trees(params, load_params(tmp_path / "out", config, shapes))
    rewrite(tmp_path / "out", lambda tensors: tensors.update({first: -tensors[other]}))
    with pytest.raises(ConfigError, match=r"contradicting: \S+ is no copy of \S+"):
        load_params(tmp_path / "out", config, shapes)


def test_the_metadata_says_under_which_name_a_tensor_is_stored(folder: Path) -> None:
    def share(tensors: dict) -> None:
        tensors["one"] = tensors.pop("model.norm.weight")

    params = load(folder)
    whole = (folder / "model.safetensors").read_bytes()
    rewrite(folder, share)
    with pytest.raises(ConfigError, match=r"missing: model.norm.weight .*extra: one"):
        load(folder)
    (folder / "model.safetensors").write_bytes(whole)
    rewrite(folder, share, **{"model.norm.weight": "one"})
    same_trees(params, load(folder))


@pytest.mark.parametrize(("config", "name", "value", "message"), [
    (LLAMA, "model.layers.0.self_attn.q_proj.bias", np.ones(16), r"extra: model.layers.0.self_attn.q_proj.bias \[16\]"),
    (LLAMA, "model.layers.0.attn.bias", np.ones(16), "extra: model.layers.0.attn.bias"),
    (LLAMA, "model.layers.0.self_attn.rotary_emb.inv_freq", np.ones(4), ""),
    (GPT2, "transformer.h.0.attn.masked_bias", np.ones(()), ""),
    (WHISPER, "model.encoder.embed_positions.weight", np.ones((512, 16)), "not what lmkit computes in its place"),
    (BERT, "bert.embeddings.position_ids", np.ones(4), ""),
])  # fmt: skip
def test_no_tensor_is_left_out_by_its_name(config: Any, name: str, value: Any, message: str, tmp_path: Path) -> None:
    shapes, params = random_params(config)
    save_folder(tmp_path / "out", config, params)
    rewrite(tmp_path / "out", lambda tensors: tensors.update({name: np.asarray(value, np.float32)}))
    if not message:
        same_trees(params, load_params(tmp_path / "out", config, shapes))
        return
    with pytest.raises(ConfigError, match=message):
        load_params(tmp_path / "out", config, shapes)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int8, np.uint8])
def test_quantised_weights_are_one_line(folder: Path, dtype: Any) -> None:
    rewrite(folder, lambda tensors: tensors.update({name: value.astype(dtype) for name, value in tensors.items()}))
    with pytest.raises(ConfigError, match="the weights are quantised: lm_head.weight is .8.*dequantise") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "end", "scale", "stored", "config"), [
    (ml_dtypes.float8_e4m3fn, "_scale_inv", (2, 3), np.float32, {"weight_block_size": [8, 6]}),
    (ml_dtypes.float8_e4m3fn, "_scale_inv", (2, 3), ml_dtypes.float8_e8m0fnu, {"weight_block_size": [8, 6]}),
    (ml_dtypes.float8_e4m3fn, "_scale_inv", (1, 1), np.float32, {}),  # smaller than a block of 128 x 128
    (ml_dtypes.float8_e5m2, "_scale", (), ml_dtypes.bfloat16, {}),
    (ml_dtypes.float8_e4m3fn, "_scale", (1,), np.float32, {}),
    (ml_dtypes.float8_e4m3fn, "_scale", (16, 1), np.float32, {}),  # compressed-tensors, by channel
    (ml_dtypes.float8_e4m3fn, "_scale", (16,), np.float32, {}),
])  # fmt: skip
def test_float8_with_scales_is_dequantised(
    folder: Path, kind: Any, end: str, scale: tuple[int, ...], stored: Any, config: dict[str, Any]
) -> None:
    """One weight of 16 x 16 of each layer; into whole arrays, and into halves on two devices."""
    rng, expected = np.random.default_rng(0), {}
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in names:
            weight = tensors[name].astype(kind)
            factors = 2.0 ** rng.integers(-3, 4, scale)
            tensors |= {name: weight, name + end: np.asarray(factors, stored)}
            rows, columns = config.get("weight_block_size", [1 if scale[:1] == (16,) else 128, 128])
            whole = factors.reshape(scale if len(scale) == 2 else (-1, 1))
            whole = whole.repeat(rows, axis=0)[:16].repeat(columns, axis=1)[:, :16]
            expected[name] = weight.astype(np.float32) * whole
        tensors[names[0].replace("weight", "input_scale")] = np.ones((), np.float32)

    rewrite(folder, change)
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": config | {"quant_method": "fp8"}})
    )
    notes: list[str] = []
    kernel = load(folder, notes)["stack"]["blocks"]["attention"]["q"]["kernel"]
    for layer, name in enumerate(names):
        np.testing.assert_array_equal(np.asarray(kernel[layer]).reshape(16, 16), expected[name].T)
    assert notes == ["2 float8 weights are dequantised by their scales; not read: 1 scales of activations"]
    shapes = random_params(LLAMA)[0]
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    half = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    leaf = shapes["stack"]["blocks"]["attention"]["q"]["kernel"]
    shapes["stack"]["blocks"]["attention"]["q"]["kernel"] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=half)
    split = load_params(folder, read_config(folder), shapes, notes=[])
    np.testing.assert_array_equal(split["stack"]["blocks"]["attention"]["q"]["kernel"], kernel)


def test_scales_that_do_not_fit_are_named(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    more = {name + "_scale_inv": np.ones((3, 5), np.float32)}
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].astype(ml_dtypes.float8_e4m3fn)} | more))
    with pytest.raises(ConfigError, match=rf"{name} \[16, 16\] is float8, and its scales \[3, 5\] are neither"):
        read_config(folder)


def test_part_of_the_head_size_rotates(folder: Path) -> None:
    path = folder / "config.json"
    for more in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
        with pytest.raises(ConfigError, match=r"partial_rotary_factor=0.5 is not supported, only 1.0"):
            read_config(folder)
