"""Beam search: the W best continuations of every row, as transformers' `generate(num_beams=W)` finds them.

B rows of W beams each, N new tokens at most, C candidates a row, V vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmkit.compiler.programs import FewRows, jit
from lmkit.config.base import ConfigError
from lmkit.decode.loop import NOTHING, Decoder, Prompts, begin, logits_of, read, rows_only, seen_in
from lmkit.decode.sampling import penalized
from lmkit.decode.stamps import said_in
from lmkit.nn.cache import Cache, cache_specs, take_rows
from lmkit.parallel.devices import platform_of
from lmkit.parallel.rules import current_spec, on_each_device, reshard

_NEVER = -1.0e9  # added to a score that must not win: larger than any, small enough to keep the order of ties


class Beams(NamedTuple):
    """The beams of every row."""

    tokens_BWN: jax.Array  # int32, NOTHING from `step` on
    score_BW: jax.Array  # float32 sums of log-probabilities
    ended_BWN: jax.Array  # the best finished ones
    ended_score_BW: jax.Array  # divided by their length
    full_BW: jax.Array  # bool: there is a finished one in this place
    open_B: jax.Array  # bool: a running one may still beat a finished one
    seen_RV: jax.Array | None  # bool, R = B W, with a repetition penalty


class BeamSearch:
    """Keeps the best beams of every row, a token a step for all of them.

    Args:
        decoder: of its sampling only the repetition penalty counts.
        beams: kept for each row.
        length_penalty: a finished beam's score is its log-probability / length ** this: above 0 for longer ones.
        early_stopping: a row ends as soon as it has `beams` finished ones, instead of when no better one is likely.
    """

    def __init__(self, decoder: Decoder, beams: int, *, length_penalty: float = 1.0, early_stopping: bool = False):
        if beams < 1:
            raise ConfigError(f"beams={beams}: it must be at least 1")
        self.decoder, self.beams = decoder, beams
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self._penalty = decoder.sampling.repetition_penalty
        here = platform_of(decoder.mesh)
        few = FewRows.fast
        self._prefill = jit(self._prefill_rows, here, few_rows=few, static_argnames=("length", "limit"))
        self._step = jit(self._step_rows, here, few_rows=few, donate_argnums=1)

    def search(self, params: Any, prompts: Prompts, *, max_new_tokens: int) -> list[list[tuple[list[int], float]]]:
        """The finished beams of every row, the best first: (new tokens without the one that ended them, score).

        Rows do not influence each other. Raises ConfigError for prompts that the model cannot go on from.
        """
        decoder = self.decoder
        batch = decoder.put(prompts, max_new_tokens)
        length = batch["tokens_BT"].shape[1] + max_new_tokens
        with decoder.on_mesh():
            going, beams, cache = self._prefill(params, batch, length=length, limit=max_new_tokens)
        for number in range(1, max_new_tokens):
            with decoder.on_mesh():
                next_going, beams, cache = self._step(params, (beams, cache), jnp.int32(number))
            if not read(going):  # a step late: one more changes nothing in rows that are closed
                break
            going = next_going
        with decoder.on_mesh():
            tokens_BWN, score_BW = (read(reshard(x, (None,) * x.ndim)) for x in (beams.ended_BWN, beams.ended_score_BW))
        return [
            [
                (decoder.without_end(tokens), float(score))
                for tokens, score in zip(*row, strict=True)
                if score > _NEVER / 2
            ]
            for row in zip(tokens_BWN[: len(prompts.tokens)], score_BW, strict=False)
        ]

    def _prefill_rows(self, params: Any, batch: Any, *, length: int, limit: int) -> Any:
        logits_BV, cache = begin(self.decoder.merge(params), batch, length)
        penalized = self._penalty != 1

        def spread(tokens_BT, num_B, done_B, logits_BV):
            """Every row `beams` times: all are the same, so the first one alone counts."""
            each_R = jnp.repeat(jnp.arange(len(num_B)), self.beams)
            blank_BWN = jnp.full((len(num_B), self.beams, limit), NOTHING) + 0 * num_B[:, None, None]
            low_BW = jnp.full((len(num_B), self.beams), _NEVER) + 0.0 * num_B[:, None]
            score_BW = jnp.where(jnp.arange(self.beams) == 0, 0.0, low_BW)
            seen_RV = seen_in(tokens_BT, num_B, self.decoder.vocab_size)[each_R] if penalized else None
            beams = Beams(blank_BWN, score_BW, blank_BWN, low_BW, low_BW > 0, ~done_B, seen_RV)
            return beams, logits_BV[each_R], each_R

        out = (Beams(*[True] * 6, True if penalized else None), True, True)  # type: ignore[arg-type]
        beams, logits_RV, each_R = rows_only(
            spread, out, batch["tokens_BT"], batch["num_B"], batch["done_B"], logits_BV
        )  # fmt: skip
        return self._advance(beams, _reordered(cache, each_R, cross=True), logits_RV, jnp.int32(0))

    def _step_rows(self, params: Any, state: tuple[Beams, Cache], number: jax.Array) -> Any:
        beams, cache = state
        model = self.decoder.merge(params)

        def newest(tokens_BWN, number):
            last = jnp.arange(tokens_BWN.shape[2]) == number - 1
            return jnp.sum(jnp.where(last, tokens_BWN, 0), axis=2).reshape(-1)

        token_R = rows_only(newest, True, beams.tokens_BWN, number)
        hidden_R1D, cache = model.extend(token_R[:, None], jnp.ones_like(token_R), cache)
        return self._advance(beams, cache, logits_of(model, hidden_R1D), number)

    def _advance(self, beams: Beams, cache: Cache, logits_RV: jax.Array, number: jax.Array) -> Any:
        """Whether any row may still change, the beams one token longer (they had `number`), and the cache."""
        out = (jax.tree.map(lambda _: True, beams), True, True)
        beams, parent_R, going_B = rows_only(self._best, out, beams, logits_RV, number)
        return jnp.any(reshard(going_B, (None,))), beams, _reordered(cache, parent_R, cross=False)

    def _best(self, beams: Beams, logits_RV: jax.Array, number: jax.Array) -> tuple[Beams, jax.Array, jax.Array]:
        """One token more: the beams, which beam each one continues, and which rows may still change."""
        (rows, width, limit), size = beams.tokens_BWN.shape, self.decoder.vocab_size
        ends = jnp.array(self.decoder.end_ids, jnp.int32)
        log_probs_RV = jax.nn.log_softmax(logits_RV.astype(jnp.float32)[:, :size], axis=1)
        stamps, tokens_RN = self.decoder.stamps, beams.tokens_BWN.reshape(rows * width, limit)
        said = said_in(tokens_RN, number, stamps) if stamps else None
        log_probs_RV = self.decoder.allowed(penalized(log_probs_RV, beams.seen_RV, self._penalty), number == 0, said)
        total_BWV = beams.score_BW[:, :, None] + log_probs_RV.reshape(rows, width, size)
        candidates = min(max(2, 1 + len(ends)) * width, width * size)  # enough that `width` of them go on
        score_BC, flat_BC = jax.lax.top_k(total_BWV.reshape(rows, -1), candidates)
        parent_BC, token_BC = flat_BC // size, flat_BC % size
        tokens_BCN = jnp.take_along_axis(beams.tokens_BWN, parent_BC[:, :, None], axis=1)
        tokens_BCN = jnp.where(jnp.arange(limit) == number, token_BC[:, :, None], tokens_BCN)
        over_BC = jnp.isin(token_BC, ends) | (number + 1 == limit)

        score_BW, order_BW = jax.lax.top_k(score_BC + jnp.where(over_BC, _NEVER, 0.0), width)
        tokens_BWN = jnp.take_along_axis(tokens_BCN, order_BW[:, :, None], axis=1)
        parent_BW = jnp.take_along_axis(parent_BC, order_BW, axis=1)
        parent_R = (jnp.arange(rows)[:, None] * width + parent_BW).reshape(-1)
        seen_RV = beams.seen_RV
        if seen_RV is not None:
            token_R = jnp.take_along_axis(token_BC, order_BW, axis=1).reshape(-1)
            seen_RV = seen_RV[parent_R].at[jnp.arange(rows * width), token_R].set(True)
        running = beams._replace(tokens_BWN=tokens_BWN, score_BW=score_BW, seen_RV=seen_RV)
        beams, going_B = self._finished(running, tokens_BCN, score_BC, over_BC, number)
        return beams, parent_R, going_B

    def _finished(
        self, beams: Beams, tokens_BCN: jax.Array, score_BC: jax.Array, over_BC: jax.Array, number: jax.Array
    ) -> tuple[Beams, jax.Array]:
        """The best of the finished beams and of the candidates that end now; which rows may still change."""
        width, limit = beams.tokens_BWN.shape[1:]
        penalty = (number + 1).astype(jnp.float32) ** self.length_penalty
        closed_B = ~beams.open_B | (self.early_stopping & jnp.all(beams.full_BW, axis=1))
        # a candidate behind the first `width` is only there so that others can go on
        ending_BC = over_BC & (jnp.arange(over_BC.shape[1]) < width) & ~closed_B[:, None]
        final_BC = score_BC / penalty + jnp.where(ending_BC, 0.0, _NEVER)
        score_BW, place_BW = jax.lax.top_k(jnp.concatenate([beams.ended_score_BW, final_BC], axis=1), width)
        both_BEN = jnp.concatenate([beams.ended_BWN, tokens_BCN], axis=1)
        ended_BWN = jnp.take_along_axis(both_BEN, place_BW[:, :, None], axis=1)
        full_BW = jnp.take_along_axis(jnp.concatenate([beams.full_BW, ending_BC], axis=1), place_BW, axis=1)

        worst_BW = jnp.where(full_BW, jnp.min(score_BW, axis=1, keepdims=True), _NEVER)
        open_B = beams.open_B & jnp.any(beams.score_BW[:, :1] / penalty > worst_BW, axis=1)
        going_B = open_B & ~(self.early_stopping & jnp.all(full_BW, axis=1)) & (number + 1 < limit)
        ended = {"ended_BWN": ended_BWN, "ended_score_BW": score_BW, "full_BW": full_BW, "open_B": open_B}
        return beams._replace(**ended), going_B


def _reordered(cache: Cache, rows_R: jax.Array, *, cross: bool) -> Cache:
    """The cache's rows in another order; each device's share by itself, for beams never leave their row."""
    take = partial(take_rows, cross=cross)
    if (specs := cache_specs(cache)) is None:
        return take(cache, rows_R)
    return on_each_device(take, (specs, current_spec(("batch",))), specs)(cache, rows_R)
