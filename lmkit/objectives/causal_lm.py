"""Next-token prediction."""

import jax
import jax.numpy as jnp

from lmkit.config.sections import ObjectiveConfig
from lmkit.objectives.cross_entropy import cross_entropy
from lmkit.objectives.sums import Sums


def causal_lm(config: ObjectiveConfig, model, batch: dict[str, jax.Array], key: jax.Array | None) -> Sums:
    """Cross-entropy of `targets` given `inputs` (both int [B, T]), weighted by `weights` (float [B, T]).

    `segment_ids` (int [B, T]), where there, keep packed documents apart.
    """
    hidden_BTD = model.hidden(batch["inputs"], batch.get("segment_ids"), None, key)
    loss, nll, correct = cross_entropy(
        hidden_BTD, model.head_VD(), batch["targets"], batch["weights"], chunk_tokens=config.chunk_tokens,
        z_loss=config.z_loss, label_smoothing=config.label_smoothing, softcap=model.config.logit_softcap,
    )  # fmt: skip
    return Sums(loss, jnp.sum(batch["weights"]), nll, correct)
