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


def penalized(scores_BV: jax.Array, seen_BV: jax.Array | None, penalty: float) -> jax.Array:
    """The scores with those of tokens already seen lowered; seen_BV: bool, None where penalty is 1."""
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
        ordered_BV = jnp.sort(scores_BV, axis=1, descending=True)
        share_BV = jax.nn.softmax(ordered_BV, axis=1)
        before_BV = jnp.cumsum(share_BV, axis=1) - share_BV  # of all more likely ones
        kept_B = jnp.maximum(jnp.sum(before_BV < sampling.top_p, axis=1), 1)
        least_B1 = jnp.take_along_axis(ordered_BV, kept_B[:, None] - 1, axis=1)
        scores_BV = jnp.where(scores_BV < least_B1, _NEVER, scores_BV)
    if sampling.min_p:
        share_BV = jax.nn.softmax(scores_BV, axis=1)
        least_B1 = sampling.min_p * jnp.max(share_BV, axis=1, keepdims=True)
        scores_BV = jnp.where(share_BV < least_B1, _NEVER, scores_BV)
    return scores_BV


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
