"""The metadata of a GGUF file: every key is used, known to change nothing, or refused."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError

_ATTENTION = "llama.attention."
USED = {
    "general.architecture", "llama.block_count", "llama.context_length", "llama.embedding_length",
    "llama.feed_forward_length", _ATTENTION + "head_count", _ATTENTION + "head_count_kv", _ATTENTION + "key_length",
    _ATTENTION + "value_length", _ATTENTION + "layer_norm_rms_epsilon", "llama.rope.dimension_count",
    "llama.rope.freq_base", "llama.rope.scale_linear", "llama.rope.scaling.type", "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length", "split.count", "split.tensors.count",
}  # fmt: skip
# They say where a file comes from, or what its tensors say, too; a key that begins so changes nothing.
HARMLESS = (
    "GGUF.", "general.", "quantize.", "split.no", "llama.vocab_size", "llama.tensor_data_layout",
    "llama.rope.scaling.finetuned",
)  # fmt: skip
# What a key has to be, where a file has it: what lmkit computes.
MUST: dict[str, tuple] = {
    "llama.expert_count": (0,), "llama.expert_used_count": (0,), "llama.use_parallel_residual": (False,),
    "llama.rope.scaling.attn_factor": (1.0,), _ATTENTION + "causal": (True,), _ATTENTION + "clamp_kqv": (0.0,),
    _ATTENTION + "max_alibi_bias": (0.0,), _ATTENTION + "sliding_window": (0,),
    _ATTENTION + "temperature_scale": (0.0,),
    "llama.logit_scale": (0.0, 1.0), "llama.embedding_scale": (0.0, 1.0), "llama.residual_scale": (0.0, 1.0),
}  # fmt: skip


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
            raise ConfigError(f"{self.path} has no {name}, which a llama needs")
        if isinstance(value, list):
            if len({*map(str, value)}) != 1:
                raise ConfigError(f"{self.path}: {name}={value!s:.60} differs by layer; lmkit's layers are alike")
            value = value[0]
        if type(value) is not int or value < 1:
            raise ConfigError(f"{self.path}: {name}={value!r} is no number of anything: it must be at least 1")
        return value

    def check_model(self) -> None:
        """Raises ConfigError for another architecture, and for what lmkit does not compute or know."""
        if (architecture := self.get("general.architecture")) != "llama":
            raise ConfigError(f"{self.path}: architecture {architecture!r}; lmkit reads GGUF of the llama family")
        if self.get("llama.expert_count"):
            raise ConfigError(f"{self.path}: a mixture of experts; import it from its safetensors")
        for name, allowed in MUST.items():
            if (value := self.get(name, allowed[0])) not in allowed:
                raise ConfigError(f"{self.path}: {name}={value!r} is not supported, only {allowed[-1]!r}")
        self.check_known({*USED, *MUST}, (*HARMLESS, "tokenizer."))

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
