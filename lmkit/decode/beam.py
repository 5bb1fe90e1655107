"""Beam search: the W best continuations of every row, as transformers' `generate(num_beams=W)` finds them.

B rows of W beams each, N new tokens at most, C candidates a row, V vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmkit.decode.loop import NOTHING, Decoder, Prompts, begin, logits_of, put_batch, rows_only, seen_in
from lmkit.decode.sampling import penalized
from lmkit.nn.cache import Cache, cache_specs, take_rows
from lmkit.parallel.rules import current_spec, reshard

_NEVER = -1.0e9  # added to a score that must not win: larger than any, small enough to keep the order of ties


class BeamSearch(NamedTuple):
    """How beams are searched.

    Attributes:
        beams: kept for each row.
        length_penalty: a finished beam's score is its log-probability / length ** this: above 0 for longer ones.
        early_stopping: a row ends as soon as it has `beams` finished ones, instead of when no better one is likely.
    """

    beams: int = 3
    length_penalty: float = 1.0
    early_stopping: bool = False


class Beams(NamedTuple):
    """The beams of every row."""

    tokens_BWN: jax.Array  # int32, NOTHING from `step` on
    score_BW: jax.Array  # float32 sums of log-probabilities
    ended_BWN: jax.Array  # the best finished ones
    ended_score_BW: jax.Array  # divided by their length
    full_BW: jax.Array  # bool: there is a finished one in this place
    open_B: jax.Array  # bool: a running one may still beat a finished one
    seen_RV: jax.Array | None  # bool, R = B W, with a repetition penalty


def search(
    decoder: Decoder, options: BeamSearch, params: Any, prompts: Prompts, *, max_new_tokens: int
) -> list[list[tuple[list[int], float]]]:
    """The finished beams of every row, the best first: (new tokens without the one that ended them, score).

    Of the decoder's sampling only the repetition penalty counts. Rows do not influence each other.
    """
    batch = put_batch(prompts, decoder.mesh, decoder.limit)
    length = batch["tokens_BT"].shape[1] + max_new_tokens
    prefill = jax.jit(partial(_prefill, decoder, options, max_new_tokens), static_argnames="length")
    step = jax.jit(partial(_step, decoder, options), donate_argnums=1)
    with decoder._on_mesh():
        going, beams, cache = prefill(params, batch, length=length)
    for number in range(1, max_new_tokens):
        with decoder._on_mesh():
            next_going, beams, cache = step(params, (beams, cache), jnp.int32(number))
        if not bool(going.addressable_data(0)):  # a step late: one more changes nothing in rows that are closed
            break
        going = next_going
    with decoder._on_mesh():
        ended_BWN, score_BW = (
            np.asarray(reshard(x, (None,) * x.ndim)) for x in (beams.ended_BWN, beams.ended_score_BW)
        )
    skipped = (NOTHING, *decoder.end_ids)
    return [
        [([int(token) for token in tokens if token not in skipped], float(score))
         for tokens, score in zip(ended_BWN[row], score_BW[row], strict=True) if score > _NEVER / 2]
        for row in range(len(prompts.tokens))
    ]  # fmt: skip


def _prefill(decoder: Decoder, options: BeamSearch, limit: int, params: Any, batch: Any, *, length: int) -> Any:
    logits_BV, cache = begin(decoder.merge(params), batch, length)
    rows, width = len(logits_BV), options.beams

    def make(tokens_BT, num_B):
        blank_BWN = jnp.full((len(num_B), width, limit), NOTHING, jnp.int32) + 0 * num_B[:, None, None]
        low_BW = jnp.full((len(num_B), width), _NEVER) + 0.0 * num_B[:, None]
        score_BW = jnp.where(jnp.arange(width) == 0, 0.0, low_BW)  # all beams are the same: one counts
        seen_RV = None
        if decoder.sampling.repetition_penalty != 1:
            seen_RV = jnp.repeat(seen_in(tokens_BT, num_B, decoder.vocab_size), width, axis=0)
        return Beams(blank_BWN, score_BW, blank_BWN, low_BW, low_BW > 0, num_B > 0, seen_RV)

    out = Beams(*[True] * 6, None if decoder.sampling.repetition_penalty == 1 else True)  # type: ignore[arg-type]
    beams = rows_only(make, out, batch["tokens_BT"], batch["num_B"])
    beams = beams._replace(open_B=beams.open_B & ~batch["done_B"])
    beams_RV = rows_only(lambda x: jnp.repeat(x, width, axis=0), True, logits_BV)
    cache = _reordered(cache, rows_only(lambda x: jnp.repeat(jnp.arange(len(x)), width), True, logits_BV), cross=True)
    assert len(beams_RV) == rows * width
    return _advance(decoder, options, beams, cache, beams_RV, jnp.int32(0))


def _step(decoder: Decoder, options: BeamSearch, params: Any, state: tuple[Beams, Cache], number: jax.Array) -> Any:
    beams, cache = state
    model = decoder.merge(params)
    last_R = rows_only(
        lambda x, n: jnp.take_along_axis(x, n[:, None, None] - 1, axis=2).reshape(-1), True,
        beams.tokens_BWN, jnp.zeros_like(beams.open_B, jnp.int32) + number,
    )  # fmt: skip
    hidden_R1D, cache = model.extend(jnp.maximum(last_R, 0)[:, None], jnp.ones_like(last_R), cache)
    return _advance(decoder, options, beams, cache, logits_of(model, hidden_R1D), number)


def _advance(
    decoder: Decoder, options: BeamSearch, beams: Beams, cache: Cache, logits_RV: jax.Array, number: jax.Array
) -> Any:
    """The beams one token longer, `number` of them made before; whether any may still change, and the cache."""
    local = partial(_best, decoder, options)
    out = (jax.tree.map(lambda _: True, beams), True, True)
    number_B = jnp.zeros_like(beams.open_B, jnp.int32) + number
    beams, parent_R, going_B = rows_only(local, out, beams, logits_RV, number_B)
    return jnp.any(reshard(going_B, (None,))), beams, _reordered(cache, parent_R, cross=False)


def _reordered(cache: Cache, rows_R: jax.Array, *, cross: bool) -> Cache:
    """The cache's rows in another order; each device's share by itself, for beams never leave their row."""
    take = partial(take_rows, cross=cross)
    if (specs := cache_specs(cache)) is None:
        return take(cache, rows_R)
    return jax.shard_map(take, in_specs=(specs, current_spec(("batch",))), out_specs=specs)(cache, rows_R)


def _best(decoder: Decoder, options: BeamSearch, beams: Beams, logits_RV: jax.Array, number_B: jax.Array) -> Any:
    rows, width, limit = beams.tokens_BWN.shape
    number, size, ends = number_B[0], decoder.vocab_size, decoder.end_ids
    log_probs_RV = jax.nn.log_softmax(logits_RV.astype(jnp.float32)[:, :size], axis=1)
    log_probs_RV = penalized(log_probs_RV, beams.seen_RV, decoder.sampling.repetition_penalty)
    total_BWV = beams.score_BW[:, :, None] + log_probs_RV.reshape(rows, width, size)
    candidates = min(max(2, 1 + len(ends)) * width, width * size)  # enough that `width` of them go on
    score_BC, flat_BC = jax.lax.top_k(total_BWV.reshape(rows, -1), candidates)
    parent_BC, token_BC = flat_BC // size, flat_BC % size
    tokens_BCN = jnp.take_along_axis(beams.tokens_BWN, parent_BC[:, :, None], axis=1)
    tokens_BCN = jnp.where(jnp.arange(limit) == number, token_BC[:, :, None], tokens_BCN)
    over_BC = jnp.isin(token_BC, jnp.array(ends, jnp.int32)) | (number + 1 == limit)

    running_BC = score_BC + jnp.where(over_BC, _NEVER, 0.0)
    running_BW, order_BW = jax.lax.top_k(running_BC, width)
    tokens_BWN = jnp.take_along_axis(tokens_BCN, order_BW[:, :, None], axis=1)
    parent_BW = jnp.take_along_axis(parent_BC, order_BW, axis=1)
    parent_R = (jnp.arange(rows)[:, None] * width + parent_BW).reshape(-1)
    seen_RV = None
    if beams.seen_RV is not None:
        token_R = jnp.take_along_axis(token_BC, order_BW, axis=1).reshape(-1)
        seen_RV = beams.seen_RV[parent_R].at[jnp.arange(rows * width), token_R].set(True)

    penalty = (number + 1).astype(jnp.float32) ** options.length_penalty
    ending_BC = over_BC & (jnp.arange(candidates) < width)  # a worse one is only there so that others go on
    closed_B = ~beams.open_B | (options.early_stopping & jnp.all(beams.full_BW, axis=1))
    final_BC = score_BC / penalty + jnp.where(ending_BC & ~closed_B[:, None], 0.0, _NEVER)
    ended_score_BW, place_BW = jax.lax.top_k(jnp.concatenate([beams.ended_score_BW, final_BC], axis=1), width)
    ended_BWN = jnp.take_along_axis(
        jnp.concatenate([beams.ended_BWN, tokens_BCN], axis=1), place_BW[:, :, None], axis=1
    )
    full_BW = jnp.take_along_axis(jnp.concatenate([beams.full_BW, ending_BC & ~closed_B[:, None]], 1), place_BW, axis=1)

    worst_BW = jnp.where(full_BW, jnp.min(ended_score_BW, axis=1, keepdims=True), _NEVER)
    open_B = beams.open_B & jnp.any(running_BW[:, :1] / penalty > worst_BW, axis=1)
    going_B = open_B & ~(options.early_stopping & jnp.all(full_BW, axis=1)) & (number + 1 < limit)
    return Beams(tokens_BWN, running_BW, ended_BWN, ended_score_BW, full_BW, open_B, seen_RV), parent_R, going_B
