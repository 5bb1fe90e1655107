"""GGUF files of the Llama family, as tensors under Llama's Hugging Face names."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import RopeScaling
from lmkit.interop.families import family_of
from lmkit.interop.gguf_fields import Fields
from lmkit.interop.source import Range

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


class GGUFSource:
    """A .gguf file, or all files of a split one: its configuration, and its tensors dequantised as they are read.

    Needs the package `gguf` (pip install 'lmkit[gguf]'). Raises ConfigError for another architecture than llama, for a
    quantisation other than TYPES, and for metadata that changes what the model computes and is not read.
    """

    def __init__(self, path: Path):
        self.dtypes: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.notes: list[str] = []
        readers = _open(path)
        self.fields = Fields(path, readers[0])
        self._tensors: dict[str, Any] = {}
        self._periods: np.ndarray | None = None
        for tensor in (one for reader in readers for one in reader.tensors):
            if tensor.tensor_type.name not in TYPES:
                raise ConfigError(f"{path}: {tensor.name} is {tensor.tensor_type.name}; lmkit reads {', '.join(TYPES)}")
            if tensor.name == "rope_freqs.weight":
                self._periods = np.array(tensor.data, np.float32)
            else:
                self._tensors[_their_name(tensor.name)] = tensor
        if (said := self.fields.number("split.tensors.count", 0)) and said != sum(len(one.tensors) for one in readers):
            raise ConfigError(f"{path}: split.tensors.count={said} of the first file, and the files have others")
        self.shapes = {name: tuple(int(n) for n in one.shape[::-1]) for name, one in self._tensors.items()}
        self.config = self._config(path)
        self.family = family_of({"model_type": "llama"})

    def read(self, name: str, ranges: Sequence[Range]) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        value = dequantize(tensor.data, tensor.tensor_type).reshape(self.shapes[name])
        for part, heads in (("q", self.config.num_heads), ("k", self.config.kv_heads)):
            if f"self_attn.{part}_proj" in name:  # stored with each head's pairs side by side
                pairs = value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:])
                value = pairs.swapaxes(1, 2).reshape(value.shape)
        return value[tuple(slice(*one) for one in ranges)]

    def _config(self, path: Path) -> GPTConfig:
        fields = self.fields
        fields.check_model()
        heads, width = fields.count("llama.attention.head_count"), fields.count("llama.embedding_length")
        size = fields.count("llama.attention.key_length", width // heads)
        for name in ("llama.attention.value_length", "llama.rope.dimension_count"):
            if (other := fields.count(name, size)) != size:
                raise ConfigError(f"{path}: {name}={other} with heads of {size}: lmkit's are rotated and sized alike")
        table = self.shapes.get("model.embed_tokens.weight", (0,))
        theta = fields.number("llama.rope.freq_base", 10_000.0) or 10_000.0
        ours: dict[str, Any] = {
            "vocab_size": table[0], "num_layers": fields.count("llama.block_count"), "num_heads": heads,
            "num_kv_heads": fields.count("llama.attention.head_count_kv", heads), "embed_dim": width,
            "head_dim": 0 if size == width // heads else size, "mlp_dim": fields.count("llama.feed_forward_length"),
            "max_seq_len": fields.count("llama.context_length"),
            "norm_eps": fields.number("llama.attention.layer_norm_rms_epsilon", 1e-5),
            "rope_theta": theta, "gated": True, "tie_embeddings": "lm_head.weight" not in self.shapes,
        }  # fmt: skip
        return GPTConfig(**ours, **self._scaling(path, theta, size))

    def _scaling(self, path: Path, theta: float, size: int) -> dict[str, Any]:
        """The linear scaling, or Llama 3.1's, which the file holds as what each frequency is divided by."""
        scaling = "llama.rope.scaling."
        factor = self.fields.number(scaling + "factor", 0.0) or self.fields.number("llama.rope.scale_linear", 0.0)
        kind = self.fields.get(scaling + "type", "linear" if factor else "none")  # as llama.cpp takes it
        if kind not in ("none", "linear") or (kind == "linear" and self._periods is not None):
            also = " beside rope_freqs" if kind == "linear" else ""
            raise ConfigError(f"{path}: rope scaling {kind!r}{also} is not supported, only linear and Llama 3.1's")
        if kind == "linear" and not factor:
            raise ConfigError(f"{path}: {scaling}type=linear without {scaling}factor")
        if kind == "linear" and factor != 1.0:
            return {"rope_scaling": RopeScaling.linear, "rope_factor": factor}
        if self._periods is None:
            return {}
        factor, original = float(self._periods.max()), self.fields.count(scaling + "original_context_length", 8192)
        periods = original * theta ** (-np.arange(0, size, 2) / size) / (2 * math.pi)
        kept = np.clip((periods - 1.0) / 3.0, 0.0, 1.0)
        expected = 1.0 / (kept + (1.0 - kept) / factor)
        if self._periods.shape != expected.shape or not np.allclose(self._periods, expected, rtol=1e-3):
            raise ConfigError(
                f"{path}: rope_freqs are not those of Llama 3.1 (from {original} positions, factor {factor})"
            )
        return {"rope_scaling": RopeScaling.llama3, "rope_factor": factor, "rope_original_len": original}


def _open(path: Path) -> list[Any]:
    """Readers of the file, or of all files of a split one, the first first."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(f"{path}: reading GGUF needs the package gguf: pip install 'lmkit[gguf]'") from error

    class Reader(gguf.GGUFReader):  # type: ignore[name-defined]
        def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **options: Any) -> Any:
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):  # else an array may have 2^60 elements
                raise ValueError(f"it ends after {len(self.data)} bytes, in the middle of a value")
            return super()._get(offset, dtype, count, *more, **options)

    def reader(one: Path) -> Any:
        if not one.is_file():
            raise ConfigError(f"{one}: no such file")
        try:
            return Reader(str(one))
        except Exception as error:  # the package checks nothing that it reads
            raise ConfigError(f"{one} is no GGUF file, or damaged: {' '.join(str(error).split()):.200}") from error

    only = reader(path)
    count = Fields(path, only).number("split.count", 1)
    if count <= 1:
        return [only]
    found = _SPLIT.fullmatch(path.name)
    if not found or int(found[3]) != count:
        raise ConfigError(f"{path} is one of {count} files: give them their names, NAME-00001-of-{count:05}.gguf")
    return [reader(path.with_name(f"{found[1]}-{number:05}-of-{found[3]}{path.suffix}"))
            for number in range(1, int(count) + 1)]  # fmt: skip


def _their_name(name: str) -> str:
    stem, _, ending = name.rpartition(".")
    if stem.startswith("blk.") and stem.count(".") > 1:
        _, number, part = stem.split(".", 2)
        return f"model.layers.{number}.{_LAYER.get(part, part)}.{ending}"
    return f"{_NAMES.get(stem, stem)}.{ending}"
