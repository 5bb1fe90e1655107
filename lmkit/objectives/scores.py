"""What a model says of each row or token, for figures that sums over a batch cannot give: intervals, calibration."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmkit.config.sections.objective import WITH_CLASSES, ObjectiveKind
from lmkit.nn.embed import vocabulary_logits
from lmkit.objectives.labels import row_outputs
from lmkit.objectives.tokens import Batch, vocabulary_outputs
from lmkit.parallel.rules import WHOLE, reshard

_MOST_LOGITS = 1 << 24  # of a batch that exist at once

Scorer = Callable[[Any, Batch], dict[str, jax.Array]]  # of a model and a batch


def token_scores(
    hidden_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array, bias_V: jax.Array | None = None,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """float32 [B, T] negative log-likelihoods in nats, and bool [B, T]: whether the target is the likeliest token.

    The logits exist for a few places of every row at a time.
    """
    rows, places = targets_BT.shape
    size = max(_MOST_LOGITS // (rows * head_VD.shape[0]), 1)
    parts = next(n for n in range(1, places + 1) if places % n == 0 and places // n <= size)
    hidden_BTD, targets_BT = reshard(hidden_BTD, WHOLE), reshard(targets_BT, ("batch", None))

    def some(xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden_BtD, targets_Bt = xs
        logits_BtV = reshard(vocabulary_logits(hidden_BtD, head_VD, bias_V, softcap), ("batch", None, None))
        picked_Bt = jnp.sum(jnp.where(targets_Bt[..., None] == jnp.arange(logits_BtV.shape[-1]), logits_BtV, 0.0), -1)
        best_Bt = jnp.argmax(logits_BtV, axis=-1) == targets_Bt
        return jax.nn.logsumexp(logits_BtV, axis=-1) - picked_Bt, best_Bt

    if parts == 1:
        return some((hidden_BTD, targets_BT))
    xs = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(rows, parts, places // parts, *x.shape[2:]), 1, 0), (hidden_BTD, targets_BT)
    )
    nll, best = (jnp.moveaxis(y, 0, 1).reshape(rows, places) for y in jax.lax.map(some, xs))
    return nll, best


def build_scorer(kind: ObjectiveKind) -> Scorer:
    """What is known of each row of a batch, by objective.

    - over a vocabulary: `nll` and `correct` of each token, [B, T];
    - classes: `nll`, `predicted` and `confidence`, the probability of the predicted class: [B], or [B, T] of words;
    - numbers: `predicted` [B];
    - images and texts: their unit vectors `image` and `text`, [B, P].
    """

    def tokens(model: Any, batch: Batch) -> dict[str, jax.Array]:
        hidden_BTD, head_VD, bias_V, softcap = vocabulary_outputs(kind, model, batch, None)
        nll_BT, correct_BT = token_scores(hidden_BTD, head_VD, batch["targets"], bias_V, softcap)
        return {"nll": nll_BT, "correct": correct_BT}

    def classes(model: Any, batch: Batch) -> dict[str, jax.Array]:
        logits = row_outputs(model, batch, None)
        hit = batch["labels"][..., None] == jnp.arange(logits.shape[-1])
        nll = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
        confidence = jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)
        return {"nll": nll, "predicted": jnp.argmax(logits, axis=-1), "confidence": confidence}

    def numbers(model: Any, batch: Batch) -> dict[str, jax.Array]:
        return {"predicted": row_outputs(model, batch, None)[:, 0]}

    def pairs(model: Any, batch: Batch) -> dict[str, jax.Array]:
        return {"image": model.embed_image(batch["images"]), "text": model.embed_text(batch["inputs"], batch["last"])}

    if kind in WITH_CLASSES:
        return classes
    return {ObjectiveKind.regress: numbers, ObjectiveKind.contrastive: pairs}.get(kind, tokens)
