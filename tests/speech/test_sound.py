"""Windows of long sounds are laid together where they say the same."""

from pathlib import Path

import numpy as np
import pytest

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import EncDecConfig
from lmkit.config.sections.generate import GenerateConfig
from lmkit.data.sources.audio import log_mel
from lmkit.speech.sound import join, opening, read_windows, windows_of
from lmkit.weights import Codec
from lmkit.weights.specials import Rules, read_rules

WHISPER = Rules((), (), (), {"en": 10, "de": 11}, {"transcribe": 20, "translate": 21}, 30)


@pytest.mark.parametrize(("windows", "whole"), [
    ([[1, 2, 3, 4]], [1, 2, 3, 4]),
    ([[1, 2, 3, 4], [3, 4, 5]], [1, 2, 3, 4, 5]),
    ([[1, 2, 3, 4, 9], [8, 3, 4, 5, 6]], [1, 2, 3, 4, 5, 6]),  # their edges misheard
    ([[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7]], [1, 2, 3, 4, 5, 6, 7]),
    ([[1, 2], [5, 6]], [1, 2, 5, 6]),
    ([[1, 2], []], [1, 2]),
    ([[], [1]], [1]),
])  # fmt: skip
def test_windows_are_joined(windows: list[list[int]], whole: list[int]) -> None:
    assert join(windows) == whole


@pytest.mark.parametrize(("samples", "starts"), [(100, [0]), (6400, [0]), (6401, [0, 4320]), (12_000, [0, 4320, 8640])])
def test_a_long_file_has_overlapping_windows(samples: int, starts: list[int], tmp_path: Path) -> None:
    """Of 20 places, which are 6,400 samples; a window is what the model would hear of that stretch alone."""
    soundfile = pytest.importorskip("soundfile", reason="LOUD: sound is not tested; pip install 'lmkit[audio]'")
    clip = np.random.default_rng(0).normal(size=samples).astype(np.float32) / 9
    soundfile.write(tmp_path / "a.wav", clip, 16_000, subtype="FLOAT")
    config = EncDecConfig(vocab_size=300, num_layers=1, num_heads=1, embed_dim=8, num_mels=8)
    (found,) = read_windows(config, GenerateConfig(audio=[str(tmp_path / "a.wav")]), 20)
    expected = [log_mel(clip[start : start + 6400], 8, num_frames=40) for start in starts]
    np.testing.assert_array_equal(found, expected)


def test_rows_of_each_file() -> None:
    assert list(windows_of([2, 1], 2)) == [[0, 2], [1, 3], [4], [5]]


def test_what_a_transcript_begins_with() -> None:
    def begin(rules: Rules, **settings: str) -> list[int | None]:
        codec = Codec(lambda text: [], lambda ids: "", 40, (0,), (1,), lambda text: [], rules)
        return opening(codec, GenerateConfig(audio=["a.wav"], **settings), True)  # type: ignore[arg-type]

    assert begin(WHISPER) == [1, None, 20, 30]
    assert begin(WHISPER, language="de", task="translate") == [1, 11, 21, 30]
    assert begin(WHISPER._replace(forced=(None, 21))) == [1, None, 21, 30]
    assert begin(WHISPER._replace(forced=(11, 21, 30)), task="transcribe") == [1, 11, 20, 30]
    assert begin(Rules((30,), no_timestamps=30)) == [1, 30], "of one language alone"
    assert begin(Rules()) == [1]
    with pytest.raises(ConfigError, match=r"language=xx: the model does not have it, it has de, en"):
        begin(WHISPER, language="xx")
    with pytest.raises(ConfigError, match=r"task=translate: .*names none"):
        begin(Rules(), task="translate")
    with pytest.raises(ConfigError, match=r"forced_decoder_ids=\[\(2, 5\)\]"):
        read_rules({"forced_decoder_ids": [[2, 5]]}, 40)
    assert read_rules({"suppress_tokens": [-1, 5, 99], "forced_bos_token_id": 3}, 40) == Rules((3,), (5,))
