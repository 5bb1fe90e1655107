"""Objectives with a label for each row or word: classes, numbers, and which text belongs to which image."""

from typing import Any

import jax
import jax.numpy as jnp

from lmkit.config.sections.objective import ObjectiveConfig
from lmkit.nn.check import check_shape
from lmkit.objectives.sums import Sums


def row_outputs(model, batch: dict[str, Any], key: jax.Array | None) -> jax.Array:
    """What the model says of each row: float32 [B, C], or [B, T, C] where it speaks of each token.

    Of `images` (float [B, H, W, C]), or of `inputs` (int [B, T]) with `segment_ids` and `types` where they are there.
    """
    if "images" in batch:
        return model(batch["images"], key)
    keys = (None, None) if key is None else jax.random.split(key)
    hidden_BTD = model.encode(batch["inputs"], batch.get("segment_ids"), None, batch.get("types"), keys[0])
    return model.class_logits(hidden_BTD, keys[1])


def classify(config: ObjectiveConfig, model, batch: dict[str, Any], key: jax.Array | None) -> tuple[Sums, jax.Array]:
    """Cross-entropy of `labels` (int [B], or [B, T]), weighted by `weights` (of that shape) if there; see row_outputs.

    With `other_labels` and `share` (both [B]) each image is a blend: the loss is that of both labels, by their shares
    (Zhang et al. 2018, section 2). Also returns the predicted classes, int32.
    """
    logits, weights = row_outputs(model, batch, key), batch.get("weights")
    predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if "share" not in batch:
        return label_sums(config, logits, batch["labels"], weights), predicted
    check_shape("share", batch["share"], logits.shape[:1], "the rows are")
    weights = jnp.ones(logits.shape[:1]) if weights is None else weights
    own = label_sums(config, logits, batch["labels"], weights * batch["share"])
    other = label_sums(config, logits, batch["other_labels"], weights * (1.0 - batch["share"]))
    return jax.tree.map(jnp.add, own, other), predicted


def regress(config: ObjectiveConfig, model, batch: dict[str, Any], key: jax.Array | None) -> tuple[Sums, jax.Array]:
    """Squared error of `targets` (float [B]), weighted by `weights` ([B]) if there. Also returns the predictions [B].

    `nll` is the same error; nothing counts as correct.
    """
    predicted_B = row_outputs(model, batch, key)[:, 0]
    weights_B = batch.get("weights", jnp.ones_like(predicted_B))
    for name, array in (("targets", batch["targets"]), ("weights", weights_B)):
        check_shape(name, array, predicted_B.shape, "the rows are")
    error = jnp.sum(weights_B * jnp.square(predicted_B - batch["targets"]))
    return Sums(error, jnp.sum(weights_B), error, jnp.zeros(())), predicted_B


def contrastive(config: ObjectiveConfig, model, batch: dict[str, Any], key: jax.Array | None) -> tuple[Sums, None]:
    """The mean of both cross-entropies, of the image given the text and of the text given the image.

    Row i of `inputs` (int [B, T], ending at `last`, int [B]) belongs to row i of `images`; every other row of the
    batch is a wrong answer (Radford et al. 2021, figure 3), on any mesh; with accumulation, of the micro-batch only.
    `nll` and `correct` are of the image given the text.
    """
    check_shape("images", batch["images"], (len(batch["inputs"]), *batch["images"].shape[1:]), "the texts need")
    logits_BB = model(batch["inputs"], batch["last"], batch["images"], key)
    own = jnp.eye(logits_BB.shape[0])
    right_B = jnp.sum(logits_BB * own, axis=1)
    of_images = jnp.sum(jax.nn.logsumexp(logits_BB, axis=1) - right_B)
    of_texts = jnp.sum(jax.nn.logsumexp(logits_BB, axis=0)) - jnp.sum(right_B)
    correct = jnp.sum((right_B >= jnp.max(logits_BB, axis=1)).astype(jnp.float32))
    return Sums((of_images + of_texts) / 2, jnp.float32(logits_BB.shape[0]), of_images, correct), None


def label_sums(config: ObjectiveConfig, logits, labels, weights=None) -> Sums:
    """Sums over rows (or words) of the cross-entropy of float32 logits [..., C] with int labels [...], smoothed."""
    check_shape("labels", labels, logits.shape[:-1], "the model's answers are", ints=True)
    weights = jnp.ones_like(logits[..., 0]) if weights is None else weights
    check_shape("weights", weights, logits.shape[:-1], "the model's answers are")
    hit = labels[..., None] == jnp.arange(logits.shape[-1])
    picked = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    nll = jax.nn.logsumexp(logits, axis=-1) - picked
    loss = nll + config.label_smoothing * (picked - jnp.mean(logits, axis=-1))
    correct = (picked >= jnp.max(logits, axis=-1)).astype(jnp.float32)
    return Sums(*[jnp.sum(weights * x) for x in (loss, jnp.ones_like(nll), nll, correct)], router={})
