"""Sound with time stamps, of any length: window after window, each from where the one before has heard to the end.

The method of Radford et al. 2022, section 3.8, as transformers' long-form `generate` has it without temperature
fallback and without the text of the windows before.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np

from lmkit.config.sections.generate import GenerateConfig
from lmkit.data.sources.audio import HOP, SAMPLE_RATE, log_mel, read_audio
from lmkit.decode import BeamSearch, Prompts
from lmkit.generate.job import Job, Text
from lmkit.generate.show import Screen
from lmkit.generate.speech import detect

FRAME_SEC, STRIDE = HOP / SAMPLE_RATE, 2  # frames of a place of the encoder, which is what a time stamp counts
_WINDOWS = 1 << 16  # that a file has at most, for randomness


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


def read_sounds(config: Any, settings: GenerateConfig, places: int) -> list[Sound]:
    """The files to transcribe. Raises ConfigError for one that is no sound."""
    found = []
    for number, path in enumerate(settings.audio):
        samples = read_audio(path)
        length = -(-len(samples) // HOP)
        frames_FM = log_mel(samples, config.num_mels, num_frames=length + STRIDE * places)
        found.append(Sound(number, frames_FM, length))
    return found


def transcribe(job: Job, sounds: Sequence[Sound], places: int, screen: Screen) -> Iterator[Text]:
    """The text of each file, in order. A file that ends gives its row of the batch to the next one."""
    hear = _hearer(job)
    waiting, done, shown = iter(sounds), {}, 0
    rows = list(islice(waiting, job.settings.batch_size))
    while shown < len(sounds):
        found = hear(_batch(job, rows, places))
        for row, (sound, tokens) in enumerate(zip(rows, found, strict=True)):
            if sound.number in done:
                continue
            _hear(job, sound, tokens, places, screen)
            if sound.ended:
                ended = "length" if sound.cut_off else "end"
                text = job.codec.decode(sound.ids)
                done[sound.number] = Text(text, sound.made, ended, segments=sound.segments, ids=tuple(sound.ids))
                screen.show(sound.number, "", done=True)
                rows[row] = next(waiting, sound)  # where none waits it stays, and what it says is not looked at
        while shown in done:
            yield done[shown]
            shown += 1


def _hearer(job: Job) -> Callable[[Prompts], list[list[int]]]:
    """What makes the tokens of a batch of windows: drawn, or the best beam."""
    settings, decoder = job.settings, job.decoder
    most = {"max_new_tokens": settings.max_new_tokens}
    if settings.num_beams == 1:
        return lambda batch: decoder.generate(job.params, batch, **most, seed=job.seed)
    search = BeamSearch(
        decoder, settings.num_beams, length_penalty=settings.length_penalty, early_stopping=settings.early_stopping
    )
    return lambda batch: [row[0][0] for row in search.search(job.params, batch, **most)]


def _batch(job: Job, rows: Sequence[Sound], places: int) -> Prompts:
    """The next window of each file. The language is found in the first one."""
    source = np.stack([one.frames_FM[one.seek : one.seek + STRIDE * places] for one in rows])
    real = np.ones((len(rows), places), np.int32)
    names = [one.number * _WINDOWS + one.windows for one in rows]
    if any(None in one.start for one in rows):
        asked = Prompts([job.start] * len(rows), source, real)  # type: ignore[list-item]
        for one, start in zip(rows, detect(job.decoder, job.params, job.start, job.codec, asked).tokens, strict=True):
            one.start = start if None in one.start else one.start
    return Prompts([[*job.before, *one.start] for one in rows], source, real, names=names)  # type: ignore[list-item]


def _hear(job: Job, sound: Sound, tokens: Sequence[int], places: int, screen: Screen) -> None:
    """Adds what was said in a window, and goes on from its last segment's end."""
    first = job.decoder.stamps.first  # type: ignore[union-attr]
    segments, frames = cut(tokens, first, min(STRIDE * places, sound.length - sound.seek))
    for one in segments:
        if words := [token for token in one.tokens if token < first]:
            start, end = (round(sound.seek * FRAME_SEC + seconds, 2) for seconds in (one.start, one.end))
            line = {"start": start, "end": end, "text": job.codec.decode(words)}
            screen.show(sound.number, "\n" * bool(sound.segments) + written(line), done=False)
            sound.segments.append(line)
            sound.ids += words
    sound.made += len(tokens)
    sound.windows += 1
    sound.cut_off |= len(tokens) >= job.settings.max_new_tokens
    sound.seek = min(sound.seek + frames, sound.length)


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


def written(segment: dict[str, Any]) -> str:
    """A segment as a line: [00:00.00 --> 00:02.50] what was said."""
    start, end = (f"{int(time // 60):02}:{time % 60:05.2f}" for time in (segment["start"], segment["end"]))
    return f"[{start} --> {end}] {segment['text'].strip()}"
