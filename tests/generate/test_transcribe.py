"""Where a window is cut into segments, and where the next one begins; a batch whose rows files leave and enter."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lmkit.config.base import ConfigError
from lmkit.config.sections.generate import GenerateConfig
from lmkit.decode.stamps import Stamps
from lmkit.generate.job import Job
from lmkit.generate.transcribe import transcribe, written
from lmkit.speech.long import Sound, cut
from lmkit.speech.sound import before_sound, opening, stamps_of
from lmkit.weights import Codec
from lmkit.weights.specials import Rules, read_rules

FIRST = 100


@pytest.mark.parametrize(("tokens", "segments", "frames"), [
    ([100, 1, 2, 110], [(0, 0.2, [100, 1, 2, 110])], 40),  # one segment, to its stamp; the window is over
    ([100, 1, 2], [(0, 0.4, [100, 1, 2])], 40),  # or to the end
    ([], [(0, 0.4, [])], 40),
    ([100, 1, 105, 106, 2, 110], [(0, 0.1, [100, 1, 105]), (0.12, 0.2, [106, 2, 110])], 40),  # nothing said after it
    ([100, 1, 105, 106, 2], [(0, 0.1, [100, 1, 105, 106])], 10),  # the second one is not whole: from its start again
    ([100, 1, 105, 105, 2, 110, 112], [(0, 0.1, [100, 1, 105]), (0.1, 0.2, [105, 2, 110, 112])], 20),
])  # fmt: skip
def test_segments_of_a_window(tokens: list[int], segments: list[Any], frames: int) -> None:
    found, after = cut(tokens, FIRST, 40)
    assert [(pytest.approx(one.start), pytest.approx(one.end), list(one.tokens)) for one in found] == segments
    assert after == frames


def test_a_line_says_when() -> None:
    assert written({"start": 3599.98, "end": 3661.5, "text": " so"}) == "[59:59.98 --> 61:01.50] so"


def test_a_file_that_ends_gives_its_row_to_the_next() -> None:
    """Of windows of 40 frames each is one segment of half of it; each begins where that ended."""
    heard: list[list[float]] = []

    class Ear:
        stamps = Stamps(FIRST, 50, 99)

        def generate(self, params: Any, batch: Any, **_: Any) -> list[list[int]]:
            heard.append(batch.source[:, 0, 0].tolist())
            assert batch.source.shape == (2, 40, 1)
            assert batch.tokens == [[7, 8, 1], [7, 8, 1]]
            return [[100, int(place) % 50, 110, 110] for place in heard[-1]]

    lengths = [50, 15, 30]
    sounds = [
        Sound(number, 100 * number + np.arange(length + 40, dtype=np.float32)[:, None], length)
        for number, length in enumerate(lengths)
    ]
    settings = GenerateConfig(audio=["a", "b", "c"], timestamps=True, batch_size=2, max_new_tokens=9)
    codec = Codec(lambda text: [], lambda ids: " ".join(map(str, ids)), 200, (50,), (1,), lambda text: [])
    job = Job(Ear(), None, codec, None, settings, 0, [1], [7, 8])  # type: ignore[arg-type]
    said: list[tuple[int, str, bool]] = []
    screen = SimpleNamespace(show=lambda row, text, done: said.append((row, text, done)))
    texts = list(transcribe(job, sounds, 20, screen))  # type: ignore[arg-type]
    assert heard == [[0, 100], [20, 200], [40, 220]]
    assert [text.text for text in texts] == ["0 20 40", "0", "0 20"]
    assert texts[0].segments == [
        {"start": place / 100, "end": round(place / 100 + 0.2, 2), "text": str(place)} for place in (0, 20, 40)
    ]
    assert [row for row, _, done in said if done] == [1, 0, 2]
    assert [text.ended for text in texts] == ["end"] * 3


WHISPER = Rules((), (), (), {"de": 10, "pt": 11}, {"transcribe": 20}, 30, 5, 25)


def codec_of(rules: Rules) -> Codec:
    return Codec(lambda text: [], lambda ids: "", 40, (0,), (1,), lambda text: [len(text), *map(ord, text[3:])], rules)


def test_what_is_asked_for_with_sound() -> None:
    audio, codec = {"audio": ["a.wav"]}, codec_of(WHISPER)
    for name in ("german", "German", "de", "<|de|>"):
        assert opening(codec, GenerateConfig(**audio, language=name), True) == [1, 10, 20, 30]
    stamped = GenerateConfig(**audio, language="portuguese", timestamps=True)
    assert opening(codec, stamped, True) == [1, 11, 20]
    assert stamps_of(codec, stamped) == Stamps(31, 0, 30, 5)
    assert stamps_of(codec, GenerateConfig(**audio)) is None
    assert before_sound(codec, GenerateConfig(**audio, prompt=" ab ")) == [25, 3]
    assert before_sound(codec, GenerateConfig(prompt="ab")) == []
    with pytest.raises(ConfigError, match=r"language=german: the model does not have it, it has pt"):
        opening(codec_of(WHISPER._replace(languages={"pt": 11})), GenerateConfig(**audio, language="german"), True)
    for rules in (Rules(), WHISPER._replace(no_timestamps=39)):
        with pytest.raises(ConfigError, match=r"generate.timestamps=True: the model has no time stamps"):
            stamps_of(codec_of(rules), stamped)
    with pytest.raises(ConfigError, match=r"generate.prompt='ab' with generate.audio: .*no token <\|startofprev\|>"):
        before_sound(codec_of(WHISPER._replace(previous=None)), GenerateConfig(**audio, prompt="ab"))
    with pytest.raises(ConfigError, match=r"holds a special token \(id 97\)"):
        before_sound(codec, GenerateConfig(**audio, prompt="xxa"))


def test_what_fits_no_sound_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"generate.timestamps=True without generate.audio"):
        GenerateConfig(timestamps=True)
    with pytest.raises(ConfigError, match=r"generate.stop=\['x'\] and generate.num_samples=1"):
        GenerateConfig(audio=["a.wav"], timestamps=True, stop=["x"])
    with pytest.raises(ConfigError, match=r"give one of them, or one generate.prompt for all sounds"):
        GenerateConfig(audio=["a.wav"], prompts_file="p.txt")
    with pytest.raises(ConfigError, match=r"prev_sot_token_id='x'"):
        read_rules({"prev_sot_token_id": "x"}, 40)


def test_frames_do_not_depend_on_the_blocks_they_are_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmkit.data.sources import audio

    clip = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    whole = audio.log_mel(clip, 20, num_frames=40)
    monkeypatch.setattr(audio, "_BLOCK", 7)
    np.testing.assert_array_equal(audio.log_mel(clip, 20, num_frames=40), whole)
