"""GGUF files as others write them, written here with the package gguf."""

from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interop.test_exchange import random_params, same_trees

from helpers import params_of, tiny_config
from lmkit.config import ConfigError
from lmkit.config.sections.model import RopeScaling
from lmkit.interop import load_params, read_config, read_gguf_tokenizer
from lmkit.models import build_model
from lmkit.nn.position import scaled_frequencies

CONFIG = tiny_config(gated=True, num_kv_heads=2, rope_theta=5000.0, norm_eps=1e-6, mlp_dim=96)
NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v"}


def permuted(kernel_DNH: np.ndarray) -> np.ndarray:
    """[D, N, H] to GGUF's [N H, D], each head's rotated pairs side by side."""
    rows = kernel_DNH.reshape(kernel_DNH.shape[0], -1).T
    heads = kernel_DNH.shape[1]
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write(path: Path, params: Any, kind: gguf.GGMLQuantizationType, architecture: str = "llama", **fields: Any) -> None:
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(CONFIG.num_layers)
    writer.add_context_length(CONFIG.max_seq_len)
    writer.add_embedding_length(CONFIG.embed_dim)
    writer.add_feed_forward_length(CONFIG.mlp_size)
    writer.add_head_count(CONFIG.num_heads)
    writer.add_head_count_kv(CONFIG.kv_heads)
    writer.add_layer_norm_rms_eps(CONFIG.norm_eps)
    writer.add_rope_freq_base(CONFIG.rope_theta)

    def add(name: str, value: np.ndarray) -> None:
        vector = value.ndim == 1
        stored = value if vector else gguf.quants.quantize(np.ascontiguousarray(value), kind)
        writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType.F32 if vector else kind)

    add("token_embd.weight", params["embed"]["table"])
    add("output.weight", params["head"]["table"])
    add("output_norm.weight", params["norm"]["scale"])
    for name, value in fields.items():
        if name != "tokenizer":
            add(name, value)
    if "tokenizer" in fields:
        fields["tokenizer"](writer)
    blocks = params["stack"]["blocks"]
    for layer in range(CONFIG.num_layers):
        place = f"blk.{layer}."
        add(place + "attn_norm.weight", blocks["attention_join"]["norm"]["scale"][layer])
        add(place + "ffn_norm.weight", blocks["mlp_join"]["norm"]["scale"][layer])
        for part in "qk":
            add(f"{place}{NAMES[part]}.weight", permuted(blocks["attention"][part]["kernel"][layer]))
        add(place + "attn_v.weight", blocks["attention"]["v"]["kernel"][layer].reshape(CONFIG.embed_dim, -1).T)
        add(place + "attn_output.weight", blocks["attention"]["out"]["kernel"][layer].reshape(-1, CONFIG.embed_dim).T)
        for part in ("gate", "up", "down"):
            add(f"{place}ffn_{part}.weight", blocks["mlp"][part]["kernel"][layer].T)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Largest error of a value of about 3 standard deviations: 4 and 8 bits in blocks of 32.
ERRORS = {"F32": 0.0, "F16": 2e-3, "Q8_0": 0.02, "Q4_0": 0.5, "Q4_1": 0.3}


@pytest.mark.parametrize("kind", ERRORS)
def test_tensors_and_configuration(kind: str, tmp_path: Path) -> None:
    shapes, params = random_params(CONFIG)
    write(tmp_path / "model.gguf", params, gguf.GGMLQuantizationType[kind])
    config = read_config(tmp_path / "model.gguf")
    assert config == CONFIG
    loaded = load_params(tmp_path / "model.gguf", config, shapes)
    if kind == "F32":
        same_trees(params, loaded)
    for name in ("q", "k"):
        mine = loaded["stack"]["blocks"]["attention"][name]["kernel"]
        np.testing.assert_allclose(mine, params["stack"]["blocks"]["attention"][name]["kernel"], atol=ERRORS[kind])
    graph, _ = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    logits = nnx.merge(graph, nnx.State(loaded))(jnp.arange(12)[None])
    assert np.isfinite(logits).all()


def test_llama3_scaling_is_recognised(tmp_path: Path) -> None:
    config = tiny_config(rope_theta=5000.0, rope_scaling=RopeScaling.llama3, rope_factor=8.0)
    inverse = 5000.0 ** (-jnp.arange(0, 16, 2) / 16)
    _, params = random_params(CONFIG)
    divisors = np.asarray(inverse / scaled_frequencies(inverse, config), np.float32)
    write(tmp_path / "a.gguf", params, gguf.GGMLQuantizationType.F32, **{"rope_freqs.weight": divisors})
    got = read_config(tmp_path / "a.gguf")
    assert (got.rope_scaling, got.rope_factor) == (RopeScaling.llama3, 8.0)
    write(tmp_path / "b.gguf", params, gguf.GGMLQuantizationType.F32, **{"rope_freqs.weight": divisors**2})
    with pytest.raises(ConfigError, match="rope_freqs"):
        read_config(tmp_path / "b.gguf")


def test_what_is_not_read_says_so(tmp_path: Path) -> None:
    _, params = random_params(CONFIG)
    write(tmp_path / "a.gguf", params, gguf.GGMLQuantizationType.F32, architecture="phi3")
    with pytest.raises(ConfigError, match="architecture 'phi3'"):
        read_config(tmp_path / "a.gguf")
    write(tmp_path / "b.gguf", params, gguf.GGMLQuantizationType.Q5_0)
    with pytest.raises(ConfigError, match="Q5_0; lmkit reads F32"):
        read_config(tmp_path / "b.gguf")
    (tmp_path / "c.gguf").write_bytes(b"no gguf" * 100)
    with pytest.raises(ConfigError, match="is no GGUF file"):
        read_config(tmp_path / "c.gguf")
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "d.gguf")


def small(path: Path, kv: Any = 2, change: Any = lambda writer: None, architecture: str = "llama") -> Any:
    """Writes a model of one layer and its tokenizer, as small as they come; returns the shapes of its parameters."""
    config = tiny_config(vocab_size=8, num_layers=1, num_heads=4, num_kv_heads=2, embed_dim=32, mlp_dim=8, gated=True)
    writer = gguf.GGUFWriter(str(path), architecture)
    for add, value in (
        (writer.add_block_count, 1), (writer.add_context_length, 64), (writer.add_embedding_length, 32),
        (writer.add_feed_forward_length, 8), (writer.add_head_count, 4), (writer.add_head_count_kv, kv),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_tokenizer_model, "gpt2"),
        (writer.add_tokenizer_pre, "gpt-2"), (writer.add_token_list, list("abcdefgh")),
        (writer.add_token_types, [1, 1, 1, 1, 1, 1, 1, 3]), (writer.add_bos_token_id, 7), (writer.add_eos_token_id, 7),
    ):  # fmt: skip
        add(value)
    change(writer)
    shapes = {
        "token_embd": (8, 32), "output_norm": (32,), "output": (8, 32), "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (8, 32), "blk.0.ffn_up": (8, 32), "blk.0.ffn_down": (32, 8),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return random_params(config)[0]


def key(name: str, value: Any) -> Any:
    """A change: one key of metadata more, or another value of it."""
    kinds = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}

    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[-1].pop(name, None)
        getattr(writer, kinds[type(value)])(name, value)

    return change


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("llama.rope.scale_linear", 4.0, (RopeScaling.linear, 4.0)),
    ("llama.rope.scaling.factor", 4.0, (RopeScaling.linear, 4.0)),
    ("llama.attention.head_count_kv", [2], (RopeScaling.none, 1.0)),
    ("llama.attention.key_length", 8, (RopeScaling.none, 1.0)),
    ("general.name", "a model", (RopeScaling.none, 1.0)),
    ("llama.rope.scaling.type", "none", (RopeScaling.none, 1.0)),
])  # fmt: skip
def test_metadata_that_is_used(name: str, value: Any, expected: tuple, tmp_path: Path) -> None:
    small(tmp_path / "a.gguf", change=key(name, value))
    got = read_config(tmp_path / "a.gguf")
    assert (got.rope_scaling, got.rope_factor, got.kv_heads) == (*expected, 2)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("llama.rope.scaling.type", "yarn", "rope scaling 'yarn'"),
    ("llama.rope.scaling.type", "linear", "without llama.rope.scaling.factor"),
    ("llama.rope.scaling.attn_factor", 0.5, "attn_factor=0.5 is not supported"),
    ("llama.rope.dimension_count", 4, "dimension_count=4 with heads of 8"),
    ("llama.attention.value_length", 16, "value_length=16 with heads of 8"),
    ("llama.attention.head_count_kv", [2, 4], "head_count_kv=.2, 4. differs by layer"),
    ("llama.attention.head_count_kv", "2", "head_count_kv='2' is no number"),
    ("llama.attention.sliding_window", 64, "sliding_window=64 is not supported"),
    ("llama.attention.clamp_kqv", 8.0, "clamp_kqv=8.0"),
    ("llama.logit_scale", 0.5, "logit_scale=0.5"),
    ("llama.something", 3, "does not know llama.something=3"),
    ("llama.expert_count", 4, "mixture of experts"),
    ("split.count", 2, "is one of 2 files"),
])  # fmt: skip
def test_metadata_that_is_refused(name: str, value: Any, message: str, tmp_path: Path) -> None:
    small(tmp_path / "a.gguf", change=key(name, value))
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("keys", "begin"), [
    ({}, []),
    ({"add_bos_token": True}, [7]),
    ({"pre": "llama-bpe"}, [7]),  # llama.cpp's default of this one
    ({"pre": "llama-bpe", "add_bos_token": False}, []),
    ({"pre": "smollm"}, []),
    ({"pre": "qwen2"}, []),
    ({"pre": "falcon"}, "splits text by 'falcon'"),
    ({"add_eos_token": True}, "add_eos_token=true"),
    ({"eos_token_id": 70}, "special token 70 is none of its 8 tokens"),
    ({"some_flag": True}, "does not know tokenizer.ggml.some_flag=True"),
])  # fmt: skip
def test_what_begins_a_text(keys: dict[str, Any], begin: Any, tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        for name, value in keys.items():
            key(f"tokenizer.ggml.{name}", value)(writer)

    small(tmp_path / "a.gguf", change=change)
    if isinstance(begin, str):
        with pytest.raises(ConfigError, match=begin):
            read_gguf_tokenizer(tmp_path / "a.gguf")
    else:
        assert read_gguf_tokenizer(tmp_path / "a.gguf").begin == begin


def test_a_split_file(tmp_path: Path) -> None:
    """Any of its files stands for all; one that is lost is named. Suffixes have no case."""
    shapes = small(tmp_path / "whole.GGUF")
    reader = gguf.GGUFReader(tmp_path / "whole.GGUF")
    config, whole = read_config(tmp_path / "whole.GGUF"), load_params(tmp_path / "whole.GGUF", CONFIG, shapes)
    for number, tensors in enumerate((reader.tensors[:5], reader.tensors[5:])):
        path = tmp_path / f"part-{number + 1:05}-of-00002.gguf"
        if number:
            writer = gguf.GGUFWriter(str(path), "llama")
            writer.kv_data[-1].clear()
        else:
            writer = gguf.GGUFWriter(str(path), "llama")
            small_keys(writer, reader)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for one in tensors:
            writer.add_tensor(one.name, np.array(one.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for number in (1, 2):
        path = tmp_path / f"part-0000{number}-of-00002.gguf"
        assert read_config(path) == config
        same_trees(whole, load_params(path, config, shapes))
    path.unlink()
    with pytest.raises(ConfigError, match=r"part-00002-of-00002\.gguf: no such file"):
        read_config(tmp_path / "part-00001-of-00002.gguf")


def small_keys(writer: gguf.GGUFWriter, reader: gguf.GGUFReader) -> None:
    """Copies numbers of metadata."""
    for name, field in reader.fields.items():
        value = field.contents()
        if name.startswith("llama.") and not isinstance(value, list):
            key(name, value)(writer)
