"""The metadata of a GGUF file: every key is used, known to change nothing, or refused."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError

# After the architecture's name and a dot.
USED = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length",
}  # fmt: skip
_GEMMA = {"attention.sliding_window", "rope.freq_base_swa", "attn_logit_softcapping", "final_logit_softcapping"}
USED_BY = {"gemma2": _GEMMA, "gemma3": _GEMMA}
SPLIT = {"general.architecture", "split.count", "split.tensors.count"}
# They say where a file comes from, or what its tensors say, too; a key that begins so changes nothing.
HARMLESS = ("GGUF.", "general.", "quantize.", "split.no", "tokenizer.")
OF_MODEL = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")
# What a key has to be, where a file has it: what lmkit computes.
MUST: dict[str, tuple] = {
    "expert_count": (0,), "expert_used_count": (0,), "use_parallel_residual": (False,),
    "rope.scaling.attn_factor": (1.0,), "attention.causal": (True,), "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,), "attention.sliding_window": (0,), "attention.temperature_scale": (0.0,),
    "attention.scale": (0.0,), "logit_scale": (0.0, 1.0), "embedding_scale": (0.0, 1.0), "residual_scale": (0.0, 1.0),
}  # fmt: skip
PATTERN = "attention.sliding_window_pattern"


class Fields:
    """Metadata by name. Each look-up raises ConfigError naming the key for a value of another type."""

    def __init__(self, path: Path, reader: Any):
        self.path = path
        try:
            self.values = {name: _plain(field.contents()) for name, field in reader.fields.items()}
        except Exception as error:  # the package checks nothing that it reads
            raise ConfigError(f"{path} is damaged: {type(error).__name__}: {error}; fetch it again") from error

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def number(self, name: str, default: float) -> float:
        """A number, such as a wavelength."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise ConfigError(f"{self.path}: {name}={value!r} is no number")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A positive whole number; of one for each layer, the number that all of them are."""
        value = self.values.get(name, default)
        if value is None:
            raise ConfigError(f"{self.path} has no {name}, which the model needs")
        if isinstance(value, list):
            if len({*map(str, value)}) != 1:
                raise ConfigError(f"{self.path}: {name}={value!s:.60} differs by layer; lmkit's layers are alike")
            value = value[0]
        if type(value) is not int or value < 1:
            raise ConfigError(f"{self.path}: {name}={value!r} is no number of anything: it must be at least 1")
        return value

    def check_model(self, architectures: Mapping[str, int]) -> str:
        """The architecture. Raises ConfigError for one that is none of these, and for what lmkit does not compute.

        Args:
            architectures: by name, which layer of how many has no window; 0 where none has one.
        """
        name = self.get("general.architecture")
        if name not in architectures:
            raise ConfigError(
                f"{self.path}: architecture {name!r}; lmkit reads GGUF of {', '.join(architectures)}; import others "
                f"from their safetensors"
            )
        if self.get(f"{name}.expert_count"):
            raise ConfigError(f"{self.path}: a mixture of experts; import it from its safetensors")
        used = USED | USED_BY.get(name, set())
        must = {key: allowed for key, allowed in MUST.items() if key not in used} | {PATTERN: (architectures[name],)}
        for key, allowed in must.items():
            if (value := self.get(f"{name}.{key}", allowed[0])) not in allowed:
                raise ConfigError(f"{self.path}: {name}.{key}={value!r} is not supported, only {allowed[-1]!r}")
        known = {*SPLIT, *(f"{name}.{key}" for key in (*used, *must))}
        self.check_known(known, (*HARMLESS, *(f"{name}.{key}" for key in OF_MODEL)))
        return name

    def check_known(self, used: Iterable[str], harmless: tuple[str, ...], prefix: str = "") -> None:
        """Raises ConfigError for a key with this prefix that is neither used nor harmless."""
        known = set(used)
        for name, value in self.values.items():
            if name.startswith(prefix) and name not in known and not name.startswith(harmless):
                raise ConfigError(f"{self.path}: lmkit does not know {name}={value!s:.60}, which may change the model")


def _plain(value: Any) -> Any:
    """Numbers are stored in float32: the shortest decimal that means the same (1e-06, not 9.999999974752427e-07)."""
    if isinstance(value, list):
        return [_plain(one) for one in value] if value and isinstance(value[0], float) else value
    return float(str(np.float32(value))) if isinstance(value, float) else value
