"""GGUF files of the Llama family, written here with the package gguf."""

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
from lmkit.interop import load_params, read_config
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
