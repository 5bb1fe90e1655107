"""Sound: a file to samples, samples to the log-mel frames that the audio front end takes.

F frames, M mel bands, R window samples, K frequencies of their spectrum.
"""

import io
from functools import cache
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmkit.config.base import ConfigError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SAMPLE_RATE = 16_000  # Hz, of Whisper and of most speech data
_WINDOW_SEC, _HOP_SEC = 0.025, 0.010
HOP = round(_HOP_SEC * SAMPLE_RATE)  # samples a frame
_BLOCK = 3000  # frames whose spectrum is held at a time: 20 MB
QUIET = 3  # frames after which padding is no longer heard in a frame: the last of so many is silence


def read_audio(path: str | Path, sample_rate: int = SAMPLE_RATE, content: bytes | None = None) -> np.ndarray:
    """A sound file (wav, flac, ogg) as float32 [samples] in -1 to 1 at `sample_rate`; channels are averaged.

    With `content` these are the file's bytes, and `path` only says where they come from.
    Raises ConfigError for a file that cannot be read or holds no sound.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, the C library is not
        raise ConfigError(f"reading {path} needs soundfile: {error}; pip install 'lmkit[audio]'") from error
    if content is None and not Path(path).is_file():
        raise ConfigError(f"{path}: no such sound file")
    try:
        channels, rate = soundfile.read(
            path if content is None else io.BytesIO(content), dtype="float32", always_2d=True
        )
    except TypeError as error:  # what the library says of a file that it takes for bare samples
        raise ConfigError(f"{path} has no header that says its rate and channels: write it as wav or flac") from error
    except (soundfile.SoundFileError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as sound (wav, flac, ogg): {error}") from error
    if not len(channels):
        raise ConfigError(f"{path} holds no sound: 0 samples; leave it out")
    if not np.isfinite(channels).all():
        raise ConfigError(f"{path} holds infinite or NaN samples; write it anew or leave it out")
    samples = channels.mean(axis=1, dtype=np.float32)
    if rate != sample_rate:
        from scipy.signal import resample_poly  # a second to import, which only sound need wait for

        common = gcd(rate, sample_rate)
        samples = resample_poly(samples, sample_rate // common, rate // common)
    return samples.astype(np.float32, copy=False)


def log_mel(samples: np.ndarray, num_mels: int = 80, sample_rate: int = SAMPLE_RATE, num_frames: int = 0) -> np.ndarray:
    """Whisper's features of float [samples]: float32 [F, num_mels] (Radford et al. 2022, section 2.2).

    Power in 25 ms Hann windows every 10 ms, each centred on its hop, mirrored at the ends; mel bands up to half the
    sample rate; log10, nothing lower than 8 below the clip's largest value; (x + 4) / 4, so about -1 to 1.5.
    The clip is first padded with silence or cut to `num_frames` hops; with 0 to the next whole hop.
    Raises ConfigError for a clip without samples.
    """
    samples = np.asarray(samples)
    if num_mels < 1 or sample_rate < 1000 or num_frames < 0:
        raise ConfigError(
            f"num_mels={num_mels} sample_rate={sample_rate} num_frames={num_frames}: log_mel takes at least one band, "
            f"1,000 samples a second and no frames less than none"
        )
    if samples.ndim != 1 or not len(samples):
        raise ConfigError(f"log_mel takes samples of shape [samples], at least one; it got {samples.shape}")
    if samples.dtype.kind not in "fiu":
        raise ConfigError(f"log_mel takes float samples in -1 to 1; it got {samples.dtype}")
    window, hop = round(_WINDOW_SEC * sample_rate), round(_HOP_SEC * sample_rate)
    frames = num_frames or -(-len(samples) // hop)
    clip = np.zeros(frames * hop)  # float64: an FFT in float32 is off by more than 1e-4 at the quietest values kept
    clip[: len(samples)] = samples[: len(clip)]
    clip = np.pad(clip, window // 2, mode="reflect")
    windows_FR = np.lib.stride_tricks.sliding_window_view(clip, window)[::hop][:frames]
    mel_FM = np.empty((frames, num_mels))
    for first in range(0, frames, _BLOCK):
        spectrum = np.fft.rfft(windows_FR[first : first + _BLOCK] * _hann(window))
        power_FK = spectrum.real**2 + spectrum.imag**2
        mel_FM[first : first + _BLOCK] = (mel_filters(num_mels, window, sample_rate) @ power_FK.T).T
    mel_FM = np.log10(np.maximum(mel_FM, 1e-10))
    mel_FM = np.maximum(mel_FM, mel_FM.max() - 8.0)
    return ((mel_FM + 4.0) / 4.0).astype(np.float32)


@cache
def mel_filters(num_mels: int, window: int, sample_rate: int) -> "csr_array":
    """float64 [M, K]: triangles, evenly spaced in mels from 0 Hz to half the sample rate.

    Slaney's scale and heights, so that each triangle has area 1 over Hz (Auditory Toolbox 1998, `mfcc`). Sparse, as a
    frequency is in two triangles at most, and as BLAS would wake all of its threads for each clip.
    Raises ConfigError where there are more bands than the spectrum can tell apart.
    """
    from scipy.sparse import csr_array

    frequencies = np.fft.rfftfreq(window, 1 / sample_rate)
    top = 15 + 27 * np.log(sample_rate / 2000) / np.log(6.4)  # mels of half the rate, which is over 1 kHz
    corners = _hertz(np.linspace(0, top, num_mels + 2))
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies[:, None] - low) / (middle - low)
    falling = (high - frequencies[:, None]) / (high - middle)
    filters = np.maximum(0, np.minimum(rising, falling)) * (2 / (high - low))
    if not filters.any(axis=0).all():
        empty = int((~filters.any(axis=0)).sum())
        raise ConfigError(f"{empty} of {num_mels} mel bands hold no frequency of a {window}-sample window; use fewer")
    return csr_array(filters.T)


@cache
def _hann(window: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)  # periodic


def _hertz(mels: np.ndarray) -> np.ndarray:
    """Slaney's scale: 3 mels to 200 Hz up to 1 kHz, logarithmic above, 27 mels to a factor of 6.4."""
    return np.where(mels < 15, 200 * mels / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))
