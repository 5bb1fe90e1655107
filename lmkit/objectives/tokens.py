"""Objectives over a vocabulary: the next token, the masked ones, the translation."""

from typing import Any

import jax
import jax.numpy as jnp

from lmkit.config.sections.objective import ObjectiveConfig, ObjectiveKind
from lmkit.nn.check import check_like, check_tokens
from lmkit.nn.forms import exact_einsum
from lmkit.objectives.cross_entropy import cross_entropy
from lmkit.objectives.labels import label_sums
from lmkit.objectives.sums import Sums
from lmkit.parallel.rules import current_spec, gathered_dims, reshard, residual_dims

Batch = dict[str, Any]  # name to an array [B, ...], or to its shape
# Hidden states [B, T, D], the head [V, D], its bias [V] or None, the softcap of the logits
Outputs = tuple[jax.Array, jax.Array, jax.Array | None, float]


def causal_lm(config: ObjectiveConfig, model, batch: Batch, key: jax.Array | None) -> tuple[Sums, None]:
    """Cross-entropy of `targets` given `inputs` (both int [B, T]), weighted by `weights` (float [B, T]).

    `segment_ids` (int [B, T]), where there, keep packed documents apart.
    """
    return _over_vocabulary(config, batch, *vocabulary_outputs(ObjectiveKind.causal_lm, model, batch, key)), None


def masked_lm(config: ObjectiveConfig, model, batch: Batch, key: jax.Array | None) -> tuple[Sums, None]:
    """Cross-entropy of `targets` where `weights` (float [B, T]) is not 0, given `inputs` with those masked.

    With `masked_positions` (int [B, P]) `targets` and `weights` are [B, P], of those tokens alone; so is the
    head's work.
    Where there: `segment_ids` (int [B, T]) keep rows' parts and padding apart, `types` (int [B, T]) say which sentence
    a token is of, and `next_sentence` (int [B], 0 where B follows A) adds its cross-entropy, weighted so that the mean
    over the masked tokens gains the mean over the rows (Devlin et al. 2019, appendix A.2); with accumulation that is so
    of each micro-batch.
    """
    hidden_BTD = model.encode(batch["inputs"], batch.get("segment_ids"), None, batch.get("types"), key)
    sums = _over_vocabulary(config, batch, *_masked_outputs(model, batch, hidden_BTD))
    if "next_sentence" in batch:
        rows = label_sums(config, model.next_sentence_logits(hidden_BTD), batch["next_sentence"])
        sums = sums._replace(loss=sums.loss + rows.loss / rows.weight * sums.weight)
    return sums, None


def _masked_outputs(model, batch: Batch, hidden_BTD) -> Outputs:
    if "masked_positions" in batch:
        check_tokens(batch["masked_positions"], name="masked_positions")
        check_like(
            (hidden_BTD.shape[0], batch["masked_positions"].shape[1]),
            "the rows need",
            masked_positions=batch["masked_positions"],
        )
    predicted_BPD = _pick(hidden_BTD, batch["masked_positions"]) if "masked_positions" in batch else hidden_BTD
    return model.lm_head(predicted_BPD), model.head_VD(), model.head_bias_V(), 0.0


def _pick(hidden_BTD: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """The hidden states at some positions, [B, P, D], by a product: unlike a gather it shards, as does its gradient."""
    dims = gathered_dims(hidden_BTD.shape[1])
    hidden_BTD = reshard(hidden_BTD, dims)
    positions_T = reshard(jnp.arange(hidden_BTD.shape[1]), dims[1:2])
    chosen_BPT = (positions_BP[..., None] == positions_T).astype(hidden_BTD.dtype)
    dims = residual_dims(positions_BP.shape[1])
    return exact_einsum("BPT,BTD->BPD", chosen_BPT, hidden_BTD, spec=current_spec(dims))


def seq2seq(config: ObjectiveConfig, model, batch: Batch, key: jax.Array | None) -> tuple[Sums, None]:
    """Cross-entropy of `targets` given `source` (int [B, S] or frames [B, F, M]) and `inputs` (int [B, T]).

    `source_segment_ids` (int [B, S]) and `segment_ids` (int [B, T]), where there, say which belong together.
    """
    return _over_vocabulary(config, batch, *vocabulary_outputs(ObjectiveKind.seq2seq, model, batch, key)), None


def vocabulary_outputs(kind: ObjectiveKind, model, batch: Batch, key: jax.Array | None) -> Outputs:
    """What the logits of a batch's `targets` are made of."""
    if kind is ObjectiveKind.masked_lm:
        hidden_BTD = model.encode(batch["inputs"], batch.get("segment_ids"), None, batch.get("types"), key)
        return _masked_outputs(model, batch, hidden_BTD)
    if kind in (ObjectiveKind.seq2seq, ObjectiveKind.span_corruption):
        hidden_BTD = model.hidden(
            batch["source"], batch["inputs"], batch.get("source_segment_ids"), batch.get("segment_ids"), key
        )
        return hidden_BTD, model.head_VD(), model.head_bias_V(), 0.0
    hidden_BTD = model.hidden(batch["inputs"], batch.get("segment_ids"), None, key)
    return hidden_BTD, model.head_VD(), None, model.config.logit_softcap


def _over_vocabulary(config: ObjectiveConfig, batch: Batch, hidden_BTD, head_VD, bias_V, softcap: float) -> Sums:
    loss, nll, correct = cross_entropy(
        hidden_BTD, head_VD, batch["targets"], batch["weights"], bias_V, chunk_tokens=config.chunk_tokens,
        z_loss=config.z_loss, label_smoothing=config.label_smoothing, softcap=softcap,
    )  # fmt: skip
    return Sums(loss, jnp.sum(batch["weights"]), nll, correct)
