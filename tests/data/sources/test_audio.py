"""Sound files are read as they were written; a tone lands in its band."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lmkit.config import ConfigError
from lmkit.data.sources.audio import log_mel, mel_filters, read_audio

soundfile = pytest.importorskip("soundfile", reason="LOUD: sound is not tested; pip install 'lmkit[audio]'")


def tone(hertz: float, seconds: float = 1.0, rate: int = 16_000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, tone(440), 16_000)
    samples = read_audio(path)
    assert samples.dtype == np.float32
    assert samples.shape == (16_000,)
    np.testing.assert_allclose(samples[1000:-1000], tone(440)[1000:-1000], atol=0.05 if suffix == "ogg" else 1e-4)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = tone(440), tone(1000)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "two.wav"), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_resampled_tone_is_the_same_tone(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", tone(1000, rate=rate), rate, subtype="FLOAT")
    samples = read_audio(tmp_path / "tone.wav", 16_000)
    assert len(samples) == 16_000
    np.testing.assert_allclose(samples[500:-500], tone(1000)[500:-500], atol=5e-3)


def test_what_a_lower_rate_cannot_hold_is_filtered_out(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "high.wav", tone(11_000, rate=44_100), 44_100, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "high.wav", 16_000)[500:-500]).max() < 0.01  # 0.5 at 5 kHz if it were folded


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    broken, empty, loud = tmp_path / "broken.wav", tmp_path / "empty.wav", tmp_path / "nan.wav"
    broken.write_bytes(b"not sound at all")
    soundfile.write(empty, np.zeros(0, np.float32), 16_000)
    soundfile.write(loud, np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    bare = tmp_path / "bare.raw"
    bare.write_bytes(bytes(4000))
    for path, reason in (
        (bare, "no header that says its rate"),
        (broken, "cannot be read"),
        (empty, "0 samples"),
        (loud, "NaN"),
        (tmp_path / "no", "no such"),
    ):
        with pytest.raises(ConfigError, match=f"{path}.*{reason}"):
            read_audio(path)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ConfigError, match=r"pip install 'lmkit\[audio\]'"):
        read_audio("clip.wav")


@pytest.mark.parametrize("hertz", [150.0, 440.0, 999.0, 2500.0, 7000.0])
def test_a_sine_lands_in_its_band(hertz: float) -> None:

    top = 15 + 27 * np.log(8) / np.log(6.4)
    mels = hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)
    frames = log_mel(tone(hertz))
    assert frames.shape == (100, 80)
    assert frames.dtype == np.float32
    assert abs(frames[50].argmax() - (mels / top * 81 - 1)) <= 0.75


def test_range_and_length() -> None:
    frames = log_mel(tone(440, 0.995))
    assert len(frames) == 100  # padded to the next whole hop
    assert frames.max() - frames.min() <= 2.0 + 1e-6
    np.testing.assert_array_equal(log_mel(np.zeros(1600, np.float32)), -1.5)  # (log10(1e-10) + 4) / 4
    quieter = log_mel(tone(440) / 10)
    np.testing.assert_allclose(log_mel(tone(440)) - quieter, 0.5, atol=1e-5)  # 20 dB are 2 decades, over 4
    padded = log_mel(tone(440), num_frames=150)
    assert padded.shape == (150, 80)
    np.testing.assert_array_equal(padded[120:], padded.min())
    assert log_mel(tone(440), num_frames=30).shape == (30, 80)


def test_a_click_is_seen_when_it_happens() -> None:
    clip = np.zeros(16_000, np.float32)
    clip[8_000] = 1.0  # the centre of frame 50
    assert log_mel(clip).mean(axis=1).argmax() == 50


def test_filters_are_triangles_of_area_one() -> None:
    filters = mel_filters(40, 4000, 16_000).toarray().T
    np.testing.assert_allclose(filters.sum(axis=0) * 4.0, 1.0, atol=1e-2)  # 4 Hz a bin
    assert (np.diff(filters.argmax(axis=0)) > 0).all()


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        log_mel(np.zeros(0, np.float32))
    with pytest.raises(ConfigError, match=r"\(2, 100\)"):
        log_mel(np.zeros((2, 100), np.float32))
    with pytest.raises(ConfigError, match="of 400 mel bands hold no frequency of a 400-sample window"):
        log_mel(tone(440), num_mels=400)


def test_two_seconds_take_milliseconds() -> None:
    clip = tone(440, 2.0)
    log_mel(clip)
    took = []
    for _ in range(20):
        start = time.process_time()
        log_mel(clip)
        took.append(time.process_time() - start)
    assert min(took) < 0.005
