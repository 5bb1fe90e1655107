"""Time stamps of speech: which tokens may come next (Radford et al. 2022, section 2.3, by transformers' rules).

R rows, N tokens that a row can have, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_NONE = -1


class Stamps(NamedTuple):
    """The tokens that say when something was heard: ids from `first` on, one for each place of the encoder.

    Attributes:
        first: the token of 0 seconds.
        end: the token that ends a text; those below it are text.
        plain: the token that asks for no time stamps, which is not chosen.
        latest: the first stamp is at most so many places after 0; None for no limit.
    """

    first: int
    end: int
    plain: int
    latest: int | None = None


class Said(NamedTuple):
    """What the rules need to know of what each row has said since its prompt, int32 [R] each."""

    count_R: jax.Array
    last_R: jax.Array
    before_R: jax.Array  # the token before the last one
    stamp_R: jax.Array  # the latest time stamp; -1 for none


def nothing_said(like_R: jax.Array) -> Said:
    """Of rows that begin; sharded as an int32 array of them."""
    zero_R = like_R * 0
    return Said(zero_R, zero_R + _NONE, zero_R + _NONE, zero_R + _NONE)


def after(said: Said, token_R: jax.Array, stamps: Stamps) -> Said:
    """The same with one token more in each row."""
    stamp_R = jnp.where(token_R >= stamps.first, token_R, said.stamp_R)
    return Said(said.count_R + 1, token_R, said.last_R, stamp_R)


def said_in(tokens_RN: jax.Array, count: jax.Array, stamps: Stamps) -> Said:
    """Of rows whose first `count` tokens are there."""
    place_N = jnp.arange(tokens_RN.shape[1])
    last_R, before_R = (jnp.sum(jnp.where(place_N == count - back, tokens_RN, 0), axis=1) for back in (1, 2))
    here_RN = (place_N < count) & (tokens_RN >= stamps.first)
    stamp_R = jnp.max(jnp.where(here_RN, tokens_RN, _NONE), axis=1)
    return Said(jnp.full_like(last_R, count), last_R, before_R, stamp_R)


def with_stamps(scores_RV: jax.Array, said: Said, stamps: Stamps) -> jax.Array:
    """The scores with -inf for tokens that may not come now.

    A text begins with a stamp. Stamps come in pairs, the end of one segment and the start of the next, but for one
    before the end of the text; they do not go back, and a segment has a length. Where all stamps together are likelier
    than any other token, one of them comes.
    """
    id_V, first = jnp.arange(scores_RV.shape[1]), stamps.first
    stamp_V, text_V = id_V >= first, id_V < stamps.end
    begins_R = said.count_R == 0
    closed_R = ~begins_R & (said.last_R >= first)  # a stamp was the last token
    pair_R = closed_R & ((said.count_R < 2) | (said.before_R >= first))
    half_R = closed_R & ~pair_R
    least_R = jnp.where(said.stamp_R < 0, first, jnp.where(half_R, said.stamp_R, said.stamp_R + 1))
    latest = scores_RV.shape[1] if stamps.latest is None else first + stamps.latest
    never_RV = (
        (id_V == stamps.plain)
        | (pair_R[:, None] & stamp_V)
        | (half_R[:, None] & text_V)
        | (stamp_V & (id_V < least_R[:, None]))
        | (begins_R[:, None] & (~stamp_V | (id_V > latest)))
    )
    scores_RV = jnp.where(never_RV, -jnp.inf, scores_RV)
    likely_R = jax.nn.logsumexp(jnp.where(stamp_V, scores_RV, -jnp.inf), axis=1)
    other_R = jnp.max(jnp.where(stamp_V, -jnp.inf, scores_RV), axis=1)
    return jnp.where((likely_R > other_R)[:, None] & ~stamp_V, -jnp.inf, scores_RV)
