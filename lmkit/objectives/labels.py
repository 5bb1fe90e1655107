"""Objectives with a label for each row: classification, and which text belongs to which image."""

from typing import Any

import jax
import jax.numpy as jnp

from lmkit.config.sections import ObjectiveConfig
from lmkit.objectives.sums import Sums


def classify(config: ObjectiveConfig, model, batch: dict[str, Any], key: jax.Array | None) -> Sums:
    """Cross-entropy of `labels` (int [B]) given `images` (float [B, H, W, C]), weighted by `weights` ([B]) if there."""
    return label_sums(config, model(batch["images"], key), batch["labels"], batch.get("weights"))


def contrastive(config: ObjectiveConfig, model, batch: dict[str, Any], key: jax.Array | None) -> Sums:
    """The mean of both cross-entropies, of the image given the text and of the text given the image.

    Row i of `inputs` (int [B, T], ending at `last`, int [B]) belongs to row i of `images`; every other row of the
    batch is a wrong answer (Radford et al. 2021, figure 3), on any mesh; with accumulation, of the micro-batch only.
    `nll` and `correct` are of the image given the text.
    """
    logits_BB = model(batch["inputs"], batch["last"], batch["images"], key)
    own = jnp.eye(logits_BB.shape[0])
    right_B = jnp.sum(logits_BB * own, axis=1)
    of_images = jnp.sum(jax.nn.logsumexp(logits_BB, axis=1) - right_B)
    of_texts = jnp.sum(jax.nn.logsumexp(logits_BB, axis=0)) - jnp.sum(right_B)
    correct = jnp.sum((right_B >= jnp.max(logits_BB, axis=1)).astype(jnp.float32))
    return Sums((of_images + of_texts) / 2, jnp.float32(logits_BB.shape[0]), of_images, correct)


def label_sums(config: ObjectiveConfig, logits_BC, labels_B, weights_B=None) -> Sums:
    """Sums over rows of the cross-entropy of float32 logits [B, C] with int labels [B], smoothed as configured."""
    weights_B = jnp.ones(labels_B.shape) if weights_B is None else weights_B
    log_B = jax.nn.logsumexp(logits_BC, axis=1)
    hit_BC = labels_B[:, None] == jnp.arange(logits_BC.shape[1])
    picked_B = jnp.sum(jnp.where(hit_BC, logits_BC, 0.0), axis=1)
    nll_B = log_B - picked_B
    loss_B = nll_B + config.label_smoothing * (picked_B - jnp.mean(logits_BC, axis=1))
    correct_B = (picked_B >= jnp.max(logits_BC, axis=1)).astype(jnp.float32)
    return Sums(*(jnp.sum(weights_B * x) for x in (loss_B, jnp.ones_like(nll_B), nll_B, correct_B)))
