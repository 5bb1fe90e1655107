"""Sound with time stamps, of any length: window after window, each from where the one before has heard to the end.

The method of Radford et al. 2022, section 3.8, as transformers' long-form `generate` has it without temperature
fallback and without the text of the windows before.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from lmkit.config.sections.generate import GenerateConfig
from lmkit.data.sources.audio import HOP, log_mel, read_audio
from lmkit.decode import BeamSearch, Prompts
from lmkit.generate.job import Job, Text
from lmkit.generate.show import Screen
from lmkit.speech.long import STRIDE, Sound
from lmkit.speech.sound import detect

_WINDOWS = 1 << 16  # that a file has at most, for randomness


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
    """Adds what was said in a window, shows it, and goes on from its last segment's end."""
    first, said = job.decoder.stamps.first, len(sound.segments)  # type: ignore[union-attr]
    sound.hear(tokens, first, places, job.codec.decode)
    for number, line in enumerate(sound.segments[said:], said):
        screen.show(sound.number, "\n" * bool(number) + written(line), done=False)
    sound.cut_off |= len(tokens) >= job.settings.max_new_tokens


def written(segment: dict[str, Any]) -> str:
    """A segment as a line: [00:00.00 --> 00:02.50] what was said."""
    start, end = (f"{int(time // 60):02}:{time % 60:05.2f}" for time in (segment["start"], segment["end"]))
    return f"[{start} --> {end}] {segment['text'].strip()}"
