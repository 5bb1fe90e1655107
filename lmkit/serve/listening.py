"""Sounds to texts: windows of many clients through one decoder whose programs are compiled before the first comes."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from lmkit.config.arithmetic.mesh import batch_shards
from lmkit.config.sections.generate import GenerateConfig
from lmkit.data.sources.audio import HOP, SAMPLE_RATE, log_mel
from lmkit.decode import Decoder, Prompts, Sampling
from lmkit.decode.loop import position_limit
from lmkit.parallel.devices import platform_of
from lmkit.serve.batcher import Batcher
from lmkit.speech.languages import CODES
from lmkit.speech.long import STRIDE, Sound
from lmkit.speech.sound import join, language_finder, opening, stamps_of, windows
from lmkit.weights import Codec

_ROWS = {"cpu": 1}  # of a batch, on each shard of it; elsewhere:
_MANY = 8
_NAMES = {code: name for name, code in reversed(CODES.items())}


class Heard(NamedTuple):
    """What a sound says."""

    text: str
    language: str  # in English; "" where the model does not tell languages apart
    seconds: float
    segments: list[dict[str, Any]] | None  # with start and end in seconds; None where the model has no time stamps
    tokens: int


class Listener:
    """A model of Whisper's kind. It takes the likeliest token each time.

    Args:
        places: of the encoder, that a window has.
    """

    def __init__(
        self,
        merge: Callable[[Any], Any],
        config: Any,
        params: Any,
        mesh: Mesh,
        codec: Codec,
        *,
        places: int,
        queue: int,
    ):
        self._params, self._config, self._codec, self._places = params, config, codec, places
        plain = codec.rules.no_timestamps
        self.stamped = plain is not None and plain + 1 < codec.vocab_size
        stamps = stamps_of(codec, self._settings("")) if self.stamped else None
        self._decoder = Decoder(
            merge, config, Sampling(), end_ids=codec.end_ids, suppress=codec.rules.suppress,
            suppress_first=codec.rules.suppress_first, vocab_size=codec.vocab_size, stamps=stamps, mesh=mesh,
        )  # fmt: skip
        self._finder = language_finder(self._decoder, codec) if codec.rules.languages else None
        self._new = max((position_limit(config) or config.max_seq_len) // 2, 1)
        rows = _ROWS.get(platform_of(mesh), _MANY) * batch_shards(mesh.shape)
        self._rows, self._batcher = rows, Batcher(self._run, rows, queue)

    def _settings(self, language: str) -> GenerateConfig:
        return GenerateConfig(audio=["file"], language=language, timestamps=self.stamped)

    def start(self, language: str) -> list[int | None]:
        """What a transcript begins with. Raises ConfigError for a language that the model does not have."""
        return opening(self._codec, self._settings(language), True)

    def compile(self) -> None:
        """Compiles the programs by a window of silence."""
        silence = np.zeros((STRIDE * self._places, self._config.num_mels), np.float32)
        start = self.start("")
        if None in start:
            start = [
                *start[: start.index(None)],
                *self._run("language", [(silence, start)]),
                *start[start.index(None) + 1 :],
            ]
        self._run("text", [(silence, start)])

    async def hear(self, samples: np.ndarray, language: str = "") -> Heard:
        """A sound of any length, window after window."""
        start, ids, made = self.start(language), [], 0
        sound = await asyncio.to_thread(self._sound, samples)
        pieces = [] if self.stamped else await asyncio.to_thread(windows, samples, self._config.num_mels, self._places)
        found: list[Sequence[int]] = []
        while not sound.ended if self.stamped else len(found) < len(pieces):
            at = slice(sound.seek, sound.seek + STRIDE * self._places)
            window = sound.frames_FM[at] if self.stamped else pieces[len(found)]
            if None in start:
                at = start.index(None)
                start[at] = await self._batcher.ask("language", (window, start[:at]))
            found.append(await self._batcher.ask("text", (window, start)))
            made += len(found[-1])
            if self.stamped:
                sound.hear(found[-1], self._decoder.stamps.first, self._places, self._codec.decode)  # type: ignore[union-attr]
        ids = sound.ids if self.stamped else join(found)
        code = next((code for code, token in self._codec.rules.languages.items() if token in start), "")
        segments = sound.segments if self.stamped else None
        return Heard(self._codec.decode(ids), _NAMES.get(code, code), len(samples) / SAMPLE_RATE, segments, made)

    def _sound(self, samples: np.ndarray) -> Sound:
        if not self.stamped:
            return Sound(0, np.zeros((0, 0), np.float32), 0)
        length = -(-len(samples) // HOP)
        return Sound(0, log_mel(samples, self._config.num_mels, num_frames=length + STRIDE * self._places), length)

    def _run(self, kind: str, rows: list[Any]) -> list[Any]:
        """On the batcher's thread: a language for each window, or its tokens."""
        padded = [*rows, *[rows[-1]] * (self._rows - len(rows))]
        source = np.stack([window for window, _ in padded])
        real = np.ones((len(padded), self._places), np.int32)
        if kind == "language":
            assert self._finder is not None
            at = [start.index(None) if None in start else len(start) for _, start in padded]
            prompts = Prompts([start[:end] for (_, start), end in zip(padded, at, strict=True)], source, real)
            found = self._finder.generate(self._params, prompts, max_new_tokens=1)
            return [one[0] for one in found[: len(rows)]]
        prompts = Prompts([start for _, start in padded], source, real)
        return self._decoder.generate(self._params, prompts, max_new_tokens=self._new)[: len(rows)]

    def swap(self, params: Any) -> None:
        """Goes on with other parameters of the same shapes."""
        self._params = params

    def close(self) -> None:
        self._batcher.close()
