"""GGUF files of the Llama family, as tensors under Llama's Hugging Face names."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import RopeScaling
from lmkit.interop.families import family_of
from lmkit.interop.source import Range

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


class GGUFSource:
    """A .gguf file: its configuration, and its tensors dequantised as they are read.

    Needs the package `gguf` (pip install 'lmkit[gguf]'). Raises ConfigError for another architecture than llama, and
    for a quantisation other than TYPES.
    """

    def __init__(self, path: Path):
        try:
            import gguf
        except ImportError as error:
            raise ConfigError(f"{path}: reading GGUF needs the package gguf: pip install 'lmkit[gguf]'") from error
        if not path.is_file():
            raise ConfigError(f"{path}: no such file")
        try:
            reader = gguf.GGUFReader(str(path))
        except (ValueError, IndexError) as error:
            raise ConfigError(f"{path} is no GGUF file: {error}") from error
        self._dequantize = gguf.quants.dequantize
        self.fields = {name: _plain(field.contents()) for name, field in reader.fields.items()}
        self._tensors: dict[str, Any] = {}
        self._periods: np.ndarray | None = None
        for tensor in reader.tensors:
            if tensor.tensor_type.name not in TYPES:
                raise ConfigError(f"{path}: {tensor.name} is {tensor.tensor_type.name}; lmkit reads {', '.join(TYPES)}")
            if tensor.name == "rope_freqs.weight":
                self._periods = np.array(tensor.data)
            else:
                self._tensors[_their_name(tensor.name)] = tensor
        self.shapes = {name: tuple(int(n) for n in one.shape[::-1]) for name, one in self._tensors.items()}
        self.config = self._config(path)
        self.family = family_of({"model_type": "llama"})

    def read(self, name: str, ranges: Sequence[Range]) -> np.ndarray:
        tensor = self._tensors[name]
        value = self._dequantize(tensor.data, tensor.tensor_type).reshape(self.shapes[name])
        for part, heads in (("q", self.config.num_heads), ("k", self.config.kv_heads)):
            if f"self_attn.{part}_proj" in name:  # stored with each head's pairs side by side
                pairs = value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:])
                value = pairs.swapaxes(1, 2).reshape(value.shape)
        return value[tuple(slice(*one) for one in ranges)]

    def _config(self, path: Path) -> GPTConfig:
        if (architecture := self.fields.get("general.architecture")) != "llama":
            raise ConfigError(f"{path}: architecture {architecture!r}; lmkit reads GGUF of the llama family")
        if self.fields.get("llama.expert_count"):
            raise ConfigError(f"{path}: a mixture of experts; import it from its safetensors")
        given = {name.removeprefix("llama."): value for name, value in self.fields.items()}
        get: Callable[..., Any] = given.get
        theta = float(get("rope.freq_base") or 10_000.0)
        heads, width = get("attention.head_count"), get("embedding_length")
        size = get("rope.dimension_count") or width // heads
        ours: dict[str, Any] = {
            "vocab_size": self.shapes["model.embed_tokens.weight"][0], "num_layers": get("block_count"),
            "num_heads": heads, "num_kv_heads": get("attention.head_count_kv", 0), "embed_dim": width,
            "head_dim": 0 if size == width // heads else size, "mlp_dim": get("feed_forward_length"),
            "max_seq_len": get("context_length"), "norm_eps": float(get("attention.layer_norm_rms_epsilon", 1e-5)),
            "rope_theta": theta, "gated": True, "tie_embeddings": "lm_head.weight" not in self.shapes,
        }  # fmt: skip
        return GPTConfig(**ours, **self._scaling(path, theta, size))

    def _scaling(self, path: Path, theta: float, size: int) -> dict[str, Any]:
        """Llama 3.1's scaling, which the file holds as what each frequency is divided by."""
        if (kind := self.fields.get("llama.rope.scaling.type", "none")) == "linear":
            return {"rope_scaling": RopeScaling.linear, "rope_factor": float(self.fields["llama.rope.scaling.factor"])}
        if self._periods is None:
            if kind != "none":
                raise ConfigError(f"{path}: rope scaling {kind!r} is not supported, only linear and Llama 3.1's")
            return {}
        factor, original = float(self._periods.max()), 8192
        periods = original * theta ** (-np.arange(0, size, 2) / size) / (2 * math.pi)
        kept = np.clip((periods - 1.0) / 3.0, 0.0, 1.0)
        if not np.allclose(self._periods, 1.0 / (kept + (1.0 - kept) / factor), rtol=1e-3):
            raise ConfigError(
                f"{path}: rope_freqs are not those of Llama 3.1 (from {original} positions, factor {factor})"
            )
        return {"rope_scaling": RopeScaling.llama3, "rope_factor": factor, "rope_original_len": original}


def _plain(value: Any) -> Any:
    """Numbers are stored in float32: the shortest decimal that means the same (1e-06, not 9.999999974752427e-07)."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _their_name(name: str) -> str:
    stem, ending = name.rsplit(".", 1)
    if stem.startswith("blk."):
        _, number, part = stem.split(".", 2)
        return f"model.layers.{number}.{_LAYER.get(part, part)}.{ending}"
    return f"{_NAMES.get(stem, stem)}.{ending}"
