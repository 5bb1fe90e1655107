"""How GGUF holds each family that llama.cpp computes: names of tensors, what is changed in them, keys of metadata.

Read from llama.cpp's own loaders (src/models) and converter (conversion/): a row for each architecture.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import Activation, RopeScaling
from lmkit.interop.families import family_for, family_of
from lmkit.interop.table import Family

_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LLAMA = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA = _LLAMA | {
    "ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_GPT2 = {
    "attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
    "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture` of llama.cpp, and the family whose model it computes.

    Attributes:
        names, layers: our (Hugging Face's) stem of a tensor by GGUF's, of the whole model and of a layer.
        place: what stands before a layer's in theirs.
        paired: the rows of queries and keys lie with each head's rotated pairs side by side.
        shift: what GGUF adds to the scales of norms.
        turned: linear layers lie [out, in] where theirs are [in, out].
        rotated: it has rotary positions.
        activation: the non-linearity that it computes.
        every: one layer in so many sees all positions, where the others have a window; 0 where none has one.
        wide: the number of layers of the size whose scores are scaled by the width over the heads, not by head size.
        refuse: what it does not compute of the family, as (whether it is so of a configuration, what it is).
    """

    name: str
    model_type: str
    layers: dict[str, str]
    names: dict[str, str] = field(default_factory=lambda: _NAMES)
    place: str = "model.layers."
    paired: bool = False
    shift: float = 0.0
    turned: bool = False
    rotated: bool = True
    activation: Activation = Activation.silu
    every: int = 0
    wide: int = 0
    refuse: tuple[tuple[Callable[[GPTConfig], bool], str], ...] = ()

    @property
    def family(self) -> Family:
        return family_of({"model_type": self.model_type})

    def theirs(self, name: str) -> str:
        """Hugging Face's name of a tensor of GGUF's; a name that is not known as it is."""
        stem, _, ending = name.rpartition(".")
        if stem.startswith("blk.") and stem.count(".") > 1:
            _, number, part = stem.split(".", 2)
            return f"{self.place}{number}.{self.layers.get(part, part)}.{ending}"
        return f"{self.names.get(stem, stem)}.{ending}"

    def stored(self, name: str) -> str:
        """The inverse of `theirs`."""
        stem, _, ending = name.rpartition(".")
        if stem.startswith(self.place):
            number, _, part = stem.removeprefix(self.place).partition(".")
            return f"blk.{number}.{_key_of(self.layers, part)}.{ending}"
        return f"{_key_of(self.names, stem)}.{ending}"

    def turns(self, name: str) -> bool:
        """Whether a tensor of theirs is the transpose of GGUF's."""
        return self.turned and name.endswith(".weight") and (".attn.c_" in name or ".mlp.c_" in name)

    def changed(self, name: str, value: np.ndarray, config: GPTConfig, *, back: bool = False) -> np.ndarray:
        """A tensor of theirs, by their name, as GGUF holds it; `back`: the inverse."""
        if self.shift and name.endswith("norm.weight"):
            return value + np.float32(-self.shift if back else self.shift)
        if value.ndim == 2 and self.turns(name):
            return value.T
        for part, heads in (("q", config.num_heads), ("k", config.kv_heads)) if self.paired else ():
            if f"self_attn.{part}_proj" in name:
                rows, rest = value.shape[0], value.shape[1:]
                shape = (heads, rows // heads // 2, 2) if back else (heads, 2, rows // heads // 2)
                return value.reshape(*shape, *rest).swapaxes(1, 2).reshape(value.shape)
        return value

    def check(self, config: GPTConfig) -> None:
        """Raises ConfigError for a model of the family that llama.cpp does not compute as it is."""
        windows = [config.window_of(layer) for layer in range(config.num_layers)]
        size = config.embed_dim // config.num_heads if self.wide == config.num_layers else config.head_size
        scale = config.attention_scale or config.head_size**-0.5
        scaling = config.rope_scaling
        bands = (config.rope_low_freq, config.rope_high_freq) != (1.0, 4.0)
        wrong = [what for bad, what in (
            (config.activation is not self.activation,
             f"model.activation={config.activation.name}: it computes {self.activation.name}"),
            (windows != self.windows(config), f"model.sliding_window={config.sliding_window} in these layers: it has "
             + (f"the window in all layers but one in {self.every}" if self.every else "none")),
            (abs(scale - size**-0.5) > 1e-6 * scale, f"model.attention_scale={scale:.6g}: its is {size**-0.5:.6g}"),
            (scaling is RopeScaling.llama3 and (not self.paired or bands),
             "model.rope_scaling=llama3 with these frequencies"),
            *((is_so(config), what) for is_so, what in self.refuse),
        ) if bad]  # fmt: skip
        if wrong:
            raise ConfigError(f"export.format=gguf: llama.cpp's {self.name} has no {'; no '.join(wrong)}")

    def windows(self, config: GPTConfig) -> list[int]:
        """The window of each layer that llama.cpp takes: the last of each group of `every` has none."""
        size = config.sliding_window if self.every else 0
        return [size if self.every and (layer + 1) % self.every else 0 for layer in range(config.num_layers)]


def _key_of(names: dict[str, str], value: str) -> str:
    return next(key for key, one in names.items() if one == value)


def _has_linear(config: GPTConfig) -> bool:
    return config.rope_scaling is not RopeScaling.none


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture("llama", "llama", _LLAMA, paired=True),
        Architecture(
            "arcee", "arcee", _LLAMA, paired=True, activation=Activation.relu2,
            refuse=((lambda config: config.bias, "model.bias=true"),),
        ),
        Architecture("qwen2", "qwen2", _LLAMA),
        Architecture("qwen3", "qwen3", _LLAMA | _QK_NORM),
        Architecture(
            "gemma2", "gemma2", _GEMMA, shift=1.0, activation=Activation.gelu_tanh, every=2, wide=46,
            refuse=(
                (lambda config: not config.attention_softcap, "model.attention_softcap=0"),
                (lambda config: not config.logit_softcap, "model.logit_softcap=0"),
                (lambda config: not config.tie_embeddings, "model.tie_embeddings=false"),
                (_has_linear, "model.rope_scaling"),
            ),
        ),
        Architecture(
            "gemma3", "gemma3_text", _GEMMA | _QK_NORM, shift=1.0, activation=Activation.gelu_tanh, every=6, wide=62,
            refuse=(
                (lambda config: bool(config.attention_softcap), "model.attention_softcap"),
                (lambda config: bool(config.logit_softcap), "model.logit_softcap"),
            ),
        ),
        Architecture(
            "gpt2", "gpt2", _GPT2, {"token_embd": "transformer.wte", "position_embd": "transformer.wpe",
                                    "output_norm": "transformer.ln_f", "output": "lm_head"},
            place="transformer.h.", turned=True, rotated=False, activation=Activation.gelu_tanh,
        ),
    )
}  # fmt: skip


def architecture_for(config: Any) -> tuple[Architecture, Family]:
    """The architecture that computes what a model does. Raises ConfigError, with the reason, where there is none."""
    if not isinstance(config, GPTConfig):
        raise ConfigError(f"export.format=gguf is for decoders, and this is a {type(config).__name__}; set "
                          f"export.format=huggingface or stablehlo")  # fmt: skip
    family = family_for(config)[0]
    found = next((one for one in ARCHITECTURES.values() if one.model_type == family.model_type), None)
    if found is None:
        kinds = ", ".join(ARCHITECTURES)
        raise ConfigError(f"export.format=gguf: this model is a {family.model_type}, and GGUF is written of {kinds}; "
                          f"set export.format=huggingface or stablehlo")  # fmt: skip
    found.check(config)
    return found, family
