"""What is particular to sound: windows padded with silence, the tokens that a transcript begins with, long files."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError, nearest
from lmkit.config.sections.generate import GenerateConfig
from lmkit.data.sources.audio import HOP, log_mel, read_audio
from lmkit.decode import Decoder, Prompts, Sampling, Stamps
from lmkit.speech.languages import CODES
from lmkit.weights import Codec

_OVERLAP = 3  # of a window's length, a third is heard by the next one, too


def check_listens(config: Any, settings: GenerateConfig) -> bool:
    """Whether sound is to be heard. Raises ConfigError where model and settings do not fit."""
    listens = bool(getattr(config, "num_mels", 0))
    if listens and not settings.audio:
        raise ConfigError("the model listens to sound: set generate.audio=[FILE, ...]")
    if settings.audio and not listens:
        raise ConfigError(f"generate.audio={settings.audio}: the model reads text; set generate.prompt=")
    return listens


def read_windows(config: Any, settings: GenerateConfig, places: int) -> list[list[np.ndarray]]:
    """For each sound file the log-mel frames [2 places, M] of its windows, as in training: silence to the end.

    A file that is longer than a window has several, of which each begins before the one before it ends.
    """
    return [windows(read_audio(path), config.num_mels, places) for path in settings.audio]


def windows(samples: np.ndarray, num_mels: int, places: int) -> list[np.ndarray]:
    """Those of one sound; see `read_windows`."""
    frames = 2 * places
    step = max(frames - frames // _OVERLAP, 1) * HOP
    starts = range(0, max(len(samples) - frames * HOP, 0) + step, step)
    pieces = [samples[start : start + frames * HOP] for start in starts]
    return [log_mel(one, num_mels, num_frames=frames) for one in pieces if len(one)]


def opening(codec: Codec, settings: GenerateConfig, listens: bool) -> list[int | None]:
    """What a decoder begins with; None where the language is to be found first.

    Raises ConfigError for a language or a task that the model does not have.
    """
    rules = codec.rules
    ids: list[int | None] = [*codec.start_ids, *rules.forced]
    language = settings.language.lower().strip("<|>")
    language = language if language in rules.languages else CODES.get(language, language)
    for key, one, known in (("language", language, rules.languages), ("task", settings.task, rules.tasks)):
        if one and one not in known:
            name = getattr(settings, key)
            have = f"it has {', '.join(sorted(known))}" if known else "its generation_config.json names none"
            raise ConfigError(
                f"generate.{key}={name}: the model does not have it, {have}: leave it out.{nearest(name, known)}"
            )
    if not listens:
        return ids
    if rules.languages:
        given = rules.languages[language] if language else None
        ids[1:2] = [given if given is not None or len(ids) < 2 else ids[1]]
    if rules.tasks:
        own = next((one for one in ids if one in rules.tasks.values()), rules.tasks.get("transcribe"))
        task = rules.tasks.get(settings.task, own)
        ids = [one for one in ids if one not in rules.tasks.values()]
        ids[2:2] = [] if task is None else [task]
    ids = [one for one in ids if one is None or one != rules.no_timestamps]
    return ids if settings.timestamps or rules.no_timestamps is None else [*ids, rules.no_timestamps]


def stamps_of(codec: Codec, settings: GenerateConfig) -> Stamps | None:
    """The time stamps that texts have. Raises ConfigError where they are asked for and the model has none."""
    if not settings.timestamps:
        return None
    plain = codec.rules.no_timestamps
    if plain is None or plain + 1 >= codec.vocab_size:
        raise ConfigError(
            "generate.timestamps=True: the model has no time stamps (no_timestamps_token_id of its "
            "generation_config.json, and tokens after that); leave it out"
        )
    return Stamps(plain + 1, min(codec.end_ids, default=plain), plain, codec.rules.latest_stamp)


def before_sound(codec: Codec, settings: GenerateConfig) -> list[int]:
    """The prompt of sounds: a text that is taken for the one before. Raises ConfigError where the model takes none."""
    if not (settings.audio and settings.prompt.strip()):
        return []
    rules, ids = codec.rules, codec.bare(" " + settings.prompt.strip())
    if rules.previous is None:
        raise ConfigError(
            f"generate.prompt={settings.prompt[:20]!r} with generate.audio: the model's files name no token "
            f"<|startofprev|>, which a text before the sound begins with; leave it out"
        )
    special = {*codec.end_ids, *codec.start_ids, *rules.languages.values(), *rules.tasks.values(), rules.previous}
    if wrong := [
        one for one in ids if one in special or (rules.no_timestamps is not None and one >= rules.no_timestamps)
    ]:
        raise ConfigError(
            f"generate.prompt={settings.prompt[:20]!r} holds a special token (id {wrong[0]}); leave it out"
        )
    return [rules.previous, *ids]


def detect(decoder: Decoder, params: Any, start: Sequence[int | None], codec: Codec, batch: Prompts) -> Prompts:
    """The batch with the likeliest language of each row in the place of None (Radford et al. 2022, section 2.3)."""
    if None not in start:
        return batch
    at, finder = start.index(None), language_finder(decoder, codec)
    found = finder.generate(params, batch._replace(tokens=[start[:at]] * len(batch.tokens)), max_new_tokens=1)
    return batch._replace(tokens=[[*start[:at], *one, *start[at + 1 :]] for one in found])


def language_finder(decoder: Decoder, codec: Codec) -> Decoder:
    """One that says nothing but a language."""
    languages = set(codec.rules.languages.values())
    others = [one for one in range(decoder.vocab_size) if one not in languages]
    return Decoder(decoder.merge, decoder.config, Sampling(), suppress=others, mesh=decoder.mesh)


def windows_of(counts: Sequence[int], each: int) -> Iterator[list[int]]:
    """For each text that is wanted, the rows of its windows, where each window has `each` rows in a line."""
    first = 0
    for count in counts:
        for sample in range(each):
            yield [(first + window) * each + sample for window in range(count)]
        first += count


def join(windows: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of windows that overlap, as one text: each pair is laid together where most tokens are the same.

    As transformers joins chunks of speech: of a stretch that both have, the left one gives the first half. Two that
    share no two tokens stand one after the other.
    """
    whole: list[int] = []
    left = list(windows[0])
    for right in windows[1:]:
        best, place = 0.0, (len(left), len(left), 0, 0)
        for shift in range(1, len(left) + len(right)):
            a, b = max(0, len(left) - shift), min(len(left), len(left) + len(right) - shift)
            c, d = max(0, shift - len(left)), min(len(right), shift)
            same = sum(x == y for x, y in zip(left[a:b], right[c:d], strict=True))
            score = same / shift + shift / 10_000  # longer ones win where as many are the same
            if same > 1 and score > best:
                best, place = score, (a, b, c, d)
        a, b, c, d = place
        whole += left[: (a + b) // 2]
        left = list(right[(c + d) // 2 :])
    return whole + left
