"""What the parts of the verb hand to each other."""

from typing import Any, NamedTuple

from lmkit.config.sections.generate import GenerateConfig
from lmkit.decode import Decoder
from lmkit.weights import Codec


class Text(NamedTuple):
    """What one row became."""

    text: str
    tokens: int
    ended: str  # "end": the model ended it; "stop": a stop string; "length": no more tokens were asked for
    score: float | None = None  # of a beam
    segments: list[dict[str, Any]] | None = None  # with time stamps: start and end in seconds, text
    ids: tuple[int, ...] = ()


class Job(NamedTuple):
    """What the rows have in common."""

    decoder: Decoder
    params: Any
    codec: Codec
    config: Any
    settings: GenerateConfig
    seed: int
    start: list[int | None]  # of an encoder-decoder; None for a language that is heard first
    before: list[int]  # of a model that listens: the prompt
