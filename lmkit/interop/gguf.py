"""GGUF files, as tensors under the Hugging Face names of the family that they hold."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import RopeScaling
from lmkit.interop.gguf_arch import ARCHITECTURES
from lmkit.interop.gguf_fields import Fields
from lmkit.interop.source import Range

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


class GGUFSource:
    """A .gguf file, or all files of a split one: its configuration, and its tensors dequantised as they are read.

    Needs the package `gguf` (pip install 'lmkit[gguf]'). Raises ConfigError for an architecture that is none of
    ARCHITECTURES, for a quantisation other than TYPES, and for metadata that changes what the model computes and is
    not read.
    """

    def __init__(self, path: Path):
        self.dtypes: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.notes: list[str] = []
        readers = _open(path)
        self.fields = Fields(path, readers[0])
        every = {name: one.every for name, one in ARCHITECTURES.items()}
        self.architecture = ARCHITECTURES[self.fields.check_model(every)]
        self.family = self.architecture.family
        self._tensors: dict[str, Any] = {}
        self._periods: np.ndarray | None = None
        for tensor in (one for reader in readers for one in reader.tensors):
            if tensor.tensor_type.name not in TYPES:
                raise ConfigError(f"{path}: {tensor.name} is {tensor.tensor_type.name}; lmkit reads {', '.join(TYPES)}")
            if tensor.name == "rope_freqs.weight":
                self._periods = np.array(tensor.data, np.float32)
            else:
                self._tensors[self.architecture.theirs(tensor.name)] = tensor
        if (said := self.fields.number("split.tensors.count", 0)) and said != sum(len(one.tensors) for one in readers):
            raise ConfigError(f"{path}: split.tensors.count={said} of the first file, and the files have others")
        self.shapes = {name: self._shape(name, one) for name, one in self._tensors.items()}
        self.config = self._config(path)

    def _shape(self, name: str, tensor: Any) -> tuple[int, ...]:
        stored = tuple(int(n) for n in tensor.shape[::-1])
        return stored[::-1] if len(stored) == 2 and self.architecture.turns(name) else stored

    def read(self, name: str, ranges: Sequence[Range]) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        stored = tuple(int(n) for n in tensor.shape[::-1])
        value = dequantize(tensor.data, tensor.tensor_type).reshape(stored)
        value = self.architecture.changed(name, value, self.config, back=True)
        return value[tuple(slice(*one) for one in ranges)]

    def _config(self, path: Path) -> GPTConfig:
        fields, kind = self.fields, self.architecture
        here = f"{kind.name}."
        heads, width = fields.count(here + "attention.head_count"), fields.count(here + "embedding_length")
        size = fields.count(here + "attention.key_length", width // heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            if (other := fields.count(here + name, size)) != size:
                raise ConfigError(
                    f"{path}: {here}{name}={other} with heads of {size}: lmkit's are rotated and sized alike"
                )
        table = self.shapes.get(kind.theirs("token_embd.weight"), (0,))
        eps = "attention.layer_norm_rms_epsilon" if kind.rotated else "attention.layer_norm_epsilon"
        ours: dict[str, Any] = {
            "vocab_size": table[0], "num_layers": fields.count(here + "block_count"), "num_heads": heads,
            "num_kv_heads": fields.count(here + "attention.head_count_kv", heads), "embed_dim": width,
            "head_dim": 0 if size == width // heads else size, "mlp_dim": fields.count(here + "feed_forward_length"),
            "max_seq_len": fields.count(here + "context_length"), "norm_eps": fields.number(here + eps, 1e-5),
            "activation": kind.activation, "tie_embeddings": "lm_head.weight" not in self.shapes,
        }  # fmt: skip
        if not kind.rotated:
            return GPTConfig(**kind.family.fixed | ours)
        theta = fields.number(here + "rope.freq_base", 10_000.0) or 10_000.0
        ours |= {"rope_theta": theta, "bias": kind.place + "0.self_attn.o_proj.bias" in self.shapes}
        if kind.every:
            ours |= self._gemma(here, size, theta, ours)
        return GPTConfig(**kind.family.fixed | ours | self._scaling(path, theta, size))

    def _gemma(self, here: str, size: int, theta: float, ours: dict[str, Any]) -> dict[str, Any]:
        """Windows, and what llama.cpp takes where a file does not say."""
        fields, kind, second = self.fields, self.architecture, self.architecture.name == "gemma2"
        window = int(fields.number(here + "attention.sliding_window", 4096 if second else 0))
        wide = kind.wide == ours["num_layers"]
        return {
            "sliding_window": window,
            "global_every": kind.every if window else 0,
            "attention_scale": (ours["embed_dim"] // ours["num_heads"] if wide else size) ** -0.5,
            "rope_local_theta": fields.number(here + "rope.freq_base_swa", theta if second else 10_000.0),
            "attention_softcap": fields.number(here + "attn_logit_softcapping", 50.0 if second else 0.0),
            "logit_softcap": fields.number(here + "final_logit_softcapping", 30.0 if second else 0.0),
        }

    def _scaling(self, path: Path, theta: float, size: int) -> dict[str, Any]:
        """The linear scaling, or Llama 3.1's, which the file holds as what each frequency is divided by."""
        here = f"{self.architecture.name}.rope."
        scaling = here + "scaling."
        factor = self.fields.number(scaling + "factor", 0.0) or self.fields.number(here + "scale_linear", 0.0)
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
        expected = llama3_divisors(theta, size, factor, original)
        if self._periods.shape != expected.shape or not np.allclose(self._periods, expected, rtol=1e-3):
            raise ConfigError(
                f"{path}: rope_freqs are not those of Llama 3.1 (from {original} positions, factor {factor})"
            )
        return {"rope_scaling": RopeScaling.llama3, "rope_factor": factor, "rope_original_len": original}


def llama3_divisors(theta: float, size: int, factor: float, original: int) -> np.ndarray:
    """What Llama 3.1's scaling divides each rotary frequency of heads of this size by, [size / 2]."""
    periods = original * theta ** (-np.arange(0, size, 2) / size) / (2 * math.pi)
    kept = np.clip((periods - 1.0) / 3.0, 0.0, 1.0)
    return 1.0 / (kept + (1.0 - kept) / factor)


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
