"""`log_mel` equals the feature extractor that Whisper's checkpoints were published with. Needs the extra `parity`."""

import numpy as np
import pytest

from lmkit.data.sources.audio import log_mel

LOUD = "LOUD: parity of log-mel frames with transformers is not tested; pip install 'lmkit[parity]'"
transformers = pytest.importorskip("transformers", reason=LOUD)


def clip(samples: int) -> np.ndarray:
    """A chirp, noise, and a stretch of near silence where the clipping acts."""
    time = np.arange(samples) / 16_000
    noise = np.random.default_rng(samples).normal(size=samples) * 0.02
    return ((0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time) + noise) * (time % 0.7 < 0.5)).astype(np.float32)


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize(
    ("samples", "frames"), [(32_000, 200), (24_123, 200), (40_000, 200), (16_123, 101), (480_000, 3000)]
)
def test_log_mel(num_mels: int, samples: int, frames: int) -> None:
    theirs = transformers.WhisperFeatureExtractor(feature_size=num_mels)(
        clip(samples),
        sampling_rate=16_000,
        padding="max_length",
        max_length=frames * 160,
        truncation=True,
        return_tensors="np",
    )
    ours = log_mel(clip(samples), num_mels, num_frames=frames)
    np.testing.assert_allclose(ours, theirs.input_features[0].T, atol=1e-4)
