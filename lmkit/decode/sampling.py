"""From logits to the next token: filters in the order of transformers' `generate`, then the Gumbel-max trick."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lmkit.config.base import ConfigError

_NEVER = -jnp.inf


class Sampling(NamedTuple):
    """How a token is chosen.

    Attributes:
        temperature: 0 for the most likely token.
        top_k: only the so many most likely; 0 for all.
        top_p: only the fewest that together have this probability (Holtzman et al. 2020, section 3.1); 1 for all.
        min_p: only those at least so likely, relative to the most likely (Nguyen et al. 2024); 0 for all.
        repetition_penalty: what the scores of tokens already there are divided by, or multiplied by where negative
            (Keskar et al. 2019, section 4.1); 1 for none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def check_sampling(sampling: Sampling) -> None:
    """Raises ConfigError for a number out of range."""
    most = {"temperature": None, "top_k": None, "top_p": 1, "min_p": 1, "repetition_penalty": None}
    for name, high in most.items():
        value, positive = getattr(sampling, name), name == "repetition_penalty"
        if not value >= 0 or (positive and not value) or (high is not None and value > high):
            end = f" and at most {high}" if high is not None else ""
            raise ConfigError(f"{name}={value}: it must be {'above 0' if positive else 'at least 0'}{end}")


def penalized(scores_BV: jax.Array, seen_BV: jax.Array | None, penalty: float | jax.Array) -> jax.Array:
    """The scores with those of tokens already seen lowered; seen_BV: bool, None where penalty is 1, else [B, 1]."""
    if seen_BV is None:
        return scores_BV
    lowered_BV = jnp.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return jnp.where(seen_BV, lowered_BV, scores_BV)


def filtered(logits_BV: jax.Array, seen_BV: jax.Array | None, sampling: Sampling) -> jax.Array:
    """float32 logits with -inf where a token may not be chosen. The most likely one always may."""
    scores_BV = penalized(logits_BV.astype(jnp.float32), seen_BV, sampling.repetition_penalty)
    if not sampling.temperature:
        return scores_BV
    scores_BV = scores_BV / sampling.temperature
    if sampling.top_k:
        least_B1 = jax.lax.top_k(scores_BV, min(sampling.top_k, scores_BV.shape[1]))[0][:, -1:]
        scores_BV = jnp.where(scores_BV < least_B1, _NEVER, scores_BV)
    if sampling.top_p < 1:
        scores_BV = _nucleus(scores_BV, jnp.sort(scores_BV, axis=1, descending=True), sampling.top_p)
    return _near_best(scores_BV, sampling.min_p) if sampling.min_p else scores_BV


def _nucleus(scores_BV: jax.Array, ordered_BV: jax.Array, top_p: float | jax.Array) -> jax.Array:
    """The fewest of the scores that together have this probability; ordered: the highest first."""
    share_BV = jax.nn.softmax(ordered_BV, axis=1)
    before_BV = jnp.cumsum(share_BV, axis=1) - share_BV  # of all more likely ones
    kept_B = jnp.maximum(jnp.sum(before_BV < top_p, axis=1), 1)
    least_B1 = jnp.take_along_axis(ordered_BV, kept_B[:, None] - 1, axis=1)
    return jnp.where(scores_BV < least_B1, _NEVER, scores_BV)


def _near_best(scores_BV: jax.Array, min_p: float | jax.Array) -> jax.Array:
    """Those scores that are so likely, relative to the most likely."""
    share_BV = jax.nn.softmax(scores_BV, axis=1)
    least_B1 = min_p * jnp.max(share_BV, axis=1, keepdims=True)
    return jnp.where(share_BV < least_B1, _NEVER, scores_BV)


class RowSampling(NamedTuple):
    """Each row's own `Sampling`, and what else an engine's request may ask for: arrays [B]."""

    temperature_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    repetition_B: jax.Array
    presence_B: jax.Array  # subtracted from the score of each token that has been written
    frequency_B: jax.Array  # subtracted once for each time
    top_k_B: jax.Array  # int
    index_B: jax.Array  # int, of the token that is chosen in its text
    seed_B2: jax.Array  # uint32


def filtered_rows(scores_BV: jax.Array, how: RowSampling) -> jax.Array:
    """`filtered` after the penalties, where each row has its own numbers: the same scores, for one sort more."""
    scores_BV = scores_BV / jnp.where(how.temperature_B > 0, how.temperature_B, 1)[:, None]
    ordered_BV, size = jnp.sort(scores_BV, axis=1, descending=True), scores_BV.shape[1]
    last_B = jnp.where(how.top_k_B > 0, jnp.minimum(how.top_k_B, size), size) - 1
    least_B1 = jnp.take_along_axis(ordered_BV, last_B[:, None], axis=1)
    scores_BV, ordered_BV = (jnp.where(one < least_B1, _NEVER, one) for one in (scores_BV, ordered_BV))
    top_p_B1, min_p_B1 = how.top_p_B[:, None], how.min_p_B[:, None]
    scores_BV = jnp.where(top_p_B1 < 1, _nucleus(scores_BV, ordered_BV, top_p_B1), scores_BV)
    return jnp.where(min_p_B1 > 0, _near_best(scores_BV, min_p_B1), scores_BV)


def choose_rows(
    logits_BV: jax.Array, seen_BV: jax.Array, count_BV: jax.Array, bias_BV: jax.Array, how: RowSampling
) -> jax.Array:
    """int32 tokens [B]: a row's i-th depends on its logits, what it has written, its numbers, its seed and i alone.

    Args:
        seen_BV: bool, tokens of the prompt and of the text.
        count_BV: int, how often each has been written.
        bias_BV: added to the scores.
    """
    scores_BV = penalized(logits_BV.astype(jnp.float32), seen_BV, how.repetition_B[:, None])
    scores_BV -= how.frequency_B[:, None] * count_BV.astype(jnp.float32)
    scores_BV -= jnp.where(count_BV > 0, how.presence_B[:, None], 0)
    scores_BV += bias_BV

    def noise(seed: jax.Array, index: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.gumbel(jax.random.fold_in(key, index), scores_BV.shape[1:])

    drawn_BV = filtered_rows(scores_BV, how) + jax.vmap(noise)(how.seed_B2, how.index_B)
    scores_BV = jnp.where(how.temperature_B[:, None] > 0, drawn_BV, scores_BV)
    return jnp.argmax(scores_BV, axis=1).astype(jnp.int32)


def choose(
    logits_BV: jax.Array,
    seen_BV: jax.Array | None,
    sampling: Sampling,
    key: jax.Array,
    rows_B: jax.Array,
    index_B: jax.Array,
) -> jax.Array:
    """int32 tokens [B].

    Row r's choice for its place i depends on its logits, the key, r and i alone, so neither the mesh nor the other
    rows of the batch change it.
    """
    scores_BV = filtered(logits_BV, seen_BV, sampling)
    if sampling.temperature:

        def noise(row: jax.Array, index: jax.Array) -> jax.Array:
            own = jax.random.fold_in(jax.random.fold_in(key, row), index)
            return jax.random.gumbel(own, scores_BV.shape[1:])

        scores_BV = scores_BV + jax.vmap(noise)(rows_B, index_B)
    return jnp.argmax(scores_BV, axis=1).astype(jnp.int32)
