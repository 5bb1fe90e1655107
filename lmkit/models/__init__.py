"""Models: assemblies of `lmkit.nn` blocks, usable without Hydra and without a mesh."""

from lmkit.config.model import GPTConfig
from lmkit.models.gpt import GPT

__all__ = ["GPT", "GPTConfig"]
