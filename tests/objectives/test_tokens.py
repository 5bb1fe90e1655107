"""What objectives over a vocabulary hand to a model and to the loss."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmkit.config.sections.objective import ObjectiveConfig
from lmkit.objectives.tokens import causal_lm, masked_lm, seq2seq

B, T, D, V = 2, 5, 4, 7
RNG = np.random.default_rng(0)
HIDDEN, HEAD, BIAS = (RNG.standard_normal(shape).astype(np.float32) for shape in ((B, T, D), (V, D), (V,)))
# the arrays are told apart by identity: each call has to get these very ones
BATCH: dict[str, Any] = {
    "inputs": "inputs", "source": "source", "segment_ids": "segments", "source_segment_ids": "source segments",
    "types": "types", "targets": RNG.integers(0, V, (B, T)), "weights": RNG.random((B, T)).astype(np.float32),
}  # fmt: skip
CONFIG = ObjectiveConfig(z_loss=0.1, label_smoothing=0.2, chunk_tokens=3)


class Model:
    """Notes what it is asked, and answers with fixed numbers."""

    def __init__(self):
        self.calls: list[tuple] = []
        self.config = SimpleNamespace(logit_softcap=2.0)

    def hidden(self, *given: Any) -> jax.Array:
        self.calls.append(given)
        return jnp.asarray(HIDDEN)

    encode = hidden

    def lm_head(self, hidden_BPD: jax.Array) -> jax.Array:
        return 2.0 * hidden_BPD

    def head_VD(self) -> jax.Array:
        return jnp.asarray(HEAD)

    def head_bias_V(self) -> jax.Array:
        return jnp.asarray(BIAS)


def check(sums: Any, logits: np.ndarray) -> None:
    """Loss with smoothing and z-loss, plain cross-entropy, right answers and weight, from logits [B, T, V]."""
    log_z = np.log(np.exp(logits).sum(axis=-1))
    nll = log_z - np.take_along_axis(logits, BATCH["targets"][..., None], axis=-1)[..., 0]
    loss = 0.8 * nll + 0.2 * (log_z - logits.mean(axis=-1)) + 0.1 * log_z**2
    right = logits.argmax(axis=-1) == BATCH["targets"]
    expected = [np.sum(BATCH["weights"] * x) for x in (loss, np.ones((B, T)), nll, right)]
    np.testing.assert_allclose(sums[:4], expected, rtol=1e-5)  # float32


def test_causal_lm() -> None:
    model, key = Model(), jax.random.key(0)
    sums, _ = causal_lm(CONFIG, model, BATCH, key)
    assert model.calls == [("inputs", "segments", None, key)]
    check(sums, 2.0 * np.tanh(HIDDEN @ HEAD.T / 2.0))


def test_masked_lm() -> None:
    model, key = Model(), jax.random.key(0)
    places = np.array([[4, 0, 2, 1, 3], [1, 2, 3, 4, 0]])
    sums, _ = masked_lm(CONFIG, model, BATCH | {"masked_positions": jnp.asarray(places)}, key)
    assert model.calls == [("inputs", "segments", None, "types", key)]
    picked = np.take_along_axis(HIDDEN, places[..., None], axis=1)
    check(sums, 2.0 * picked @ HEAD.T + BIAS)


def test_seq2seq() -> None:
    model, key = Model(), jax.random.key(0)
    sums, _ = seq2seq(CONFIG, model, BATCH, key)
    assert model.calls == [("source", "inputs", "source segments", "segments", key)]
    check(sums, HIDDEN @ HEAD.T + BIAS)
