"""Models: assemblies of `lmkit.nn` blocks, usable without Hydra and without a mesh."""

from typing import Any

from flax import nnx

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, GPTConfig, Pooling, ViTConfig
from lmkit.config.sections.model import ModelConfig
from lmkit.models.bert import BERT
from lmkit.models.encdec import EncDec, Memory
from lmkit.models.gpt import GPT
from lmkit.models.vit import CLIP, ViT

# The model of each family's configuration.
MODELS: dict[type[ModelConfig], Any] = {
    GPTConfig: GPT,
    BERTConfig: BERT,
    EncDecConfig: EncDec,
    ViTConfig: ViT,
    CLIPConfig: CLIP,
}


def build_model(config: ModelConfig, rngs: nnx.Rngs) -> Any:
    """The model of a configuration. Raises ConfigError where there is none."""
    if type(config) not in MODELS:
        raise ConfigError(f"no model for {type(config).__name__}: choose one with model=NAME")
    return MODELS[type(config)](config, rngs=rngs)


__all__ = [
    "BERT", "CLIP", "GPT", "MODELS", "BERTConfig", "CLIPConfig", "EncDec", "EncDecConfig", "GPTConfig", "Memory",
    "Pooling", "ViT", "ViTConfig", "build_model",
]  # fmt: skip
