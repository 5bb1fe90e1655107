"""Objectives with a label for each row, by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmkit.config.sections.objective import ObjectiveConfig
from lmkit.objectives.labels import classify, regress

LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [0.0, 0.0, 3.0], [1.0, 2.0, 0.0]], np.float32)
LABELS, OTHERS = np.array([0, 2, 2, 1]), np.array([1, 1, 2, 0])
WEIGHTS = np.array([1.0, 2.0, 0.5, 0.0], np.float32)
SMOOTH = ObjectiveConfig(label_smoothing=0.1)


class Texts:
    """Notes what it is asked, and answers with fixed numbers."""

    def __init__(self):
        self.calls: list[tuple] = []

    def encode(self, *given: Any) -> str:
        self.calls.append(given)
        return "hidden"

    def class_logits(self, *given: Any) -> jax.Array:
        self.calls.append(given)
        return jnp.asarray(LOGITS)


def losses(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row, with smoothing and without."""
    log_probs = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    plain = -log_probs[np.arange(4), labels]
    return 0.9 * plain - 0.1 * log_probs.mean(axis=1), plain


def test_classes_of_texts() -> None:
    model, key = Texts(), jax.random.key(0)
    batch = {"inputs": "inputs", "segment_ids": "segments", "types": "types", "labels": LABELS, "weights": WEIGHTS}
    sums, predicted = classify(SMOOTH, model, batch, key)
    first, second = jax.random.split(key)
    assert model.calls == [("inputs", "segments", None, "types", first), ("hidden", second)]
    smooth, plain = losses(LABELS)
    expected = [WEIGHTS @ smooth, 3.5, WEIGHTS @ plain, 1.5]
    np.testing.assert_allclose(sums[:4], expected, rtol=1e-5)  # float32
    assert predicted.tolist() == [0, 1, 2, 1]


def test_blended_images_have_two_labels() -> None:
    share = np.array([0.25, 0.5, 1.0, 0.75], np.float32)
    batch = {"images": "images", "labels": LABELS, "other_labels": OTHERS, "share": share}
    sums, _ = classify(SMOOTH, lambda images, key: jnp.asarray(LOGITS), batch, None)
    (own, plain), (other, plain_other) = losses(LABELS), losses(OTHERS)
    rest = 1 - share
    # right are row 0 by its own label, row 1 by the other one, row 2 by both, row 3 by its own
    expected = [share @ own + rest @ other, 4.0, share @ plain + rest @ plain_other, 0.25 + 0.5 + 1.0 + 0.75]
    np.testing.assert_allclose(sums[:4], expected, rtol=1e-5)  # float32


def test_numbers() -> None:
    batch = {"images": "images", "targets": np.array([1.0, 1.0, 2.0, 5.0], np.float32), "weights": WEIGHTS}
    sums, predicted = regress(SMOOTH, lambda images, key: jnp.asarray(LOGITS[:, :1]), batch, None)
    np.testing.assert_allclose(sums[:4], [1.0 + 2 * 0.25 + 0.5 * 4.0, 3.5, 3.5, 0.0], rtol=1e-6)
    assert predicted.tolist() == LOGITS[:, 0].tolist()
