"""Sound of any length, with time stamps: window after window, each from where the one before has heard to the end.

The method of Radford et al. 2022, section 3.8, as transformers' long-form `generate` has it without temperature
fallback and without the text of the windows before.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lmkit.data.sources.audio import HOP, SAMPLE_RATE

FRAME_SEC, STRIDE = HOP / SAMPLE_RATE, 2  # frames of a place of the encoder, which is what a time stamp counts


class Segment(NamedTuple):
    """What was said between two times, in seconds from the start of its window."""

    start: float
    end: float
    tokens: Sequence[int]


@dataclasses.dataclass
class Sound:
    """A file on its way: log-mel frames with a window of silence behind them, and what was heard up to `seek`."""

    number: int
    frames_FM: np.ndarray
    length: int  # in frames, silence left out
    seek: int = 0
    start: Sequence[int | None] = (None,)  # what its texts begin with
    windows: int = 0
    made: int = 0
    cut_off: bool = False
    ids: list[int] = dataclasses.field(default_factory=list)
    segments: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.seek >= self.length

    def hear(self, tokens: Sequence[int], first: int, places: int, decode: Callable[[list[int]], str]) -> None:
        """Adds what was said in the next window, and goes on from its last segment's end.

        Args:
            first: the token of 0 seconds.
            places: of the encoder, a window.
            decode: ids to text.
        """
        segments, frames = cut(tokens, first, min(STRIDE * places, self.length - self.seek))
        for one in segments:
            if words := [token for token in one.tokens if token < first]:
                start, end = (round(self.seek * FRAME_SEC + seconds, 2) for seconds in (one.start, one.end))
                self.segments.append({"start": start, "end": end, "text": decode(words)})
                self.ids += words
        self.made += len(tokens)
        self.windows += 1
        self.seek = min(self.seek + frames, self.length)


def cut(tokens: Sequence[int], first: int, frames: int) -> tuple[list[Segment], int]:
    """The segments of a window of `frames`, and after how many frames the next one begins.

    Two time stamps in a row part two segments. What follows the last pair is not whole: the next window begins there.
    `first`: the token of 0 seconds.
    """
    stamps = [token >= first for token in tokens]
    ends = [place for place in range(1, len(tokens)) if stamps[place - 1] and stamps[place]]
    seconds = STRIDE * FRAME_SEC
    if not ends:
        last = next((token - first for token in reversed(tokens) if token > first), frames // STRIDE)
        return [Segment(0.0, last * seconds, tokens)], frames
    whole = stamps[-2:] == [False, True]  # nothing is said after the last one
    ends = [*ends, len(tokens)] if whole else [*ends[:-1], ends[-1] + 1]
    pieces = [tokens[begin:end] for begin, end in pairwise([0, *ends])]
    lasts = [piece[-1] for piece in pieces]
    if not whole:
        lasts[-1] = pieces[-1][-2]
    segments = [
        Segment((piece[0] - first) * seconds, (last - first) * seconds, piece)
        for piece, last in zip(pieces, lasts, strict=True)
    ]
    return segments, frames if whole else (lasts[-1] - first) * STRIDE
