"""Folders and trees that do not fit are named, with both shapes and the way out; nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from helpers import params_of
from lmkit.config.base import ConfigError
from lmkit.config.sections.families import BERTConfig, GPTConfig
from lmkit.interop import load_params, locate, read_config, read_gguf_tokenizer, save_folder
from lmkit.models import build_model
from lmkit.nn.tree import flat, nested

SMALL: dict[str, Any] = {"vocab_size": 16, "num_layers": 1, "num_heads": 2, "embed_dim": 8}
LLAMA = GPTConfig(**SMALL, gated=True)


@pytest.fixture(scope="module")
def shapes() -> dict[str, Any]:
    return params_of(nnx.eval_shape(lambda: build_model(LLAMA, nnx.Rngs(0))))[1]


@pytest.fixture(scope="module")
def params(shapes: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)


def changed(tree: dict[str, Any], **leaves: Any) -> Any:
    """A tree with other leaves at some paths ('__' for a dot), None for none there."""
    whole = flat(tree) | {path.replace("__", "."): leaf for path, leaf in leaves.items()}
    return nested({path: leaf for path, leaf in whole.items() if leaf is not None})


WRONG: list[tuple[Callable[[Path, Any], Any], str]] = [
    (lambda p, t: save_folder(p, LLAMA, changed(t, norm__scale=None)), r"missing: norm.scale \[8\]: give the config"),
    (lambda p, t: save_folder(p, LLAMA, changed(t, more__bias=np.zeros(3))), r"extra: more.bias \[3\]"),
    (lambda p, t: save_folder(p, LLAMA, changed(t, norm__scale=np.zeros(9))), r"norm.scale \[9\] instead of \[8\]"),
    (lambda p, t: save_folder(p, LLAMA, [t]), "a tree of parameters is a list: give a nested dict"),
    (lambda p, t: save_folder(p, LLAMA, t, dtype="int8"), "dtype=int8: there are float32, bfloat16, float16"),
    (lambda p, t: save_folder(p, LLAMA, t, shard_bytes=0), "shard_bytes=0"),
    (lambda p, t: save_folder(p, BERTConfig(**SMALL, next_sentence_head=True), t), "BERTConfig; missing: "),
    (lambda p, t: read_config(p / "nowhere"), "no config.json there"),
    (lambda p, t: read_config("nowhere.gguf"), "nowhere.gguf: no such file"),
    (lambda p, t: read_gguf_tokenizer("nowhere.gguf"), "nowhere.gguf: no such file"),
    (lambda p, t: locate("hub://one"), "a hub id is hub://org/name"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_call(params: dict[str, Any], tmp_path: Path, wrong: Callable, message: str) -> None:
    if "gguf" in message:
        pytest.importorskip("gguf")
    with pytest.raises(ConfigError, match=message) as caught:
        wrong(tmp_path / "out", params)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_model(shapes: dict[str, Any], params: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    save_folder(folder, LLAMA, params)
    for wrong, message in (
        (changed(shapes, norm__scale=None), "no tensors for norm.scale"),
        (changed(shapes, norm__scale=jax.ShapeDtypeStruct((9,), np.float32)), r"norm.weight \[8\] instead of \[9\]"),
        (list(shapes), "a tree of parameters is a list"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_params(folder, LLAMA, wrong)
    with pytest.raises(ConfigError, match="a llama is a GPTConfig, not a BERTConfig"):
        load_params(folder, BERTConfig(**SMALL), shapes)


@pytest.mark.parametrize(("name", "text", "message"), [
    ("config.json", "[]", "config.json holds a list: it must be an object"),
    ("config.json", "{", "config.json is no JSON"),
    ("config.json", '{"model_type": 3}', "no table for model_type='3'"),
    ("config.json", '{"model_type": "llama", "vocab_size": "many"}', "config.json"),
    ("config.json", b'{"by": "Jos\xe9"}', "byte 11 is not UTF-8"),
    ("model.safetensors.index.json", '{"weight_map": {"a', "index.json is no JSON"),
    ("model.safetensors.index.json", "{}", "has no weight_map"),
    ("model.safetensors.index.json", '{"weight_map": 3}', "has no weight_map"),
    ("model.safetensors.index.json", '{"weight_map": {"a": "../b.safetensors"}}', "no file of this folder"),
    ("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}', "fetch"),
    ("model.safetensors", "broken", "fetch it again"),
])  # fmt: skip
def test_a_broken_file(
    shapes: dict[str, Any], params: dict[str, Any], tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    folder = tmp_path / "out"
    save_folder(folder, LLAMA, params)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        load_params(folder, read_config(folder), shapes)
    assert "\n" not in str(caught.value)
