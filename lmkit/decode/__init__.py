"""Decoding: from a model's logits to text. Models are handed in; see docs/generate.md."""

from lmkit.decode.beam import BeamSearch
from lmkit.decode.engine import Engine
from lmkit.decode.loop import Decoder, Prompts
from lmkit.decode.sampling import Sampling
from lmkit.decode.stamps import Stamps
from lmkit.decode.text import TextStream

__all__ = ["BeamSearch", "Decoder", "Engine", "Prompts", "Sampling", "Stamps", "TextStream"]
