"""Log-probabilities of a prompt's own tokens. R rows, T tokens, D embedding, V vocabulary, K likeliest tokens."""

from collections.abc import Callable, Sequence
from functools import partial
from math import nan
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lmkit.decode.request import MAX_TOP_LOGPROBS, TokenEvent
from lmkit.parallel.rules import WHOLE, reshard
from lmkit.serve.batcher import TokenRows

_CHUNK = 64  # places whose logits are held at a time


class Scorer:
    """The likelihood of each token of a text after those before it, and the likeliest ones in its place."""

    def __init__(
        self, merge: Callable[[Any], Any], params: Any, mesh: Mesh, *, vocab_size: int, length: int, queue: int
    ):
        self._rows = TokenRows(partial(_scores, merge, vocab_size), params, mesh, length=length, queue=queue)
        self.compile, self.swap, self.close = self._rows.compile, self._rows.swap, self._rows.close

    async def score(self, ids: Sequence[int], tops: int) -> list[TokenEvent]:
        """An event for each token; the first one's log-probability is NaN, as nothing stands before it."""
        logprob_T, value_TK, token_TK = await self._rows.ask(ids)
        events = [TokenEvent(ids[0], nan)]
        for place, token in enumerate(ids[1:]):
            top = zip(token_TK[place, :tops].tolist(), value_TK[place, :tops].tolist(), strict=True)
            events.append(TokenEvent(token, float(logprob_T[place]), tuple(top)))
        return events


def _scores(merge: Callable[[Any], Any], vocab_size: int, params: Any, tokens_RT: jax.Array, num_R: jax.Array) -> Any:
    """float32 [R, T] of the token in the next place, float32 and int32 [R, T, K] of the likeliest there."""
    model = merge(params)
    hidden_RTD = reshard(model.hidden(tokens_RT), WHOLE)
    rows, length = tokens_RT.shape
    next_RT = reshard(jnp.pad(tokens_RT[:, 1:], ((0, 0), (0, 1))), ("batch", None))
    chunk, top = min(_CHUNK, length), min(MAX_TOP_LOGPROBS, vocab_size)
    pad = -length % chunk
    hidden_RTD, next_RT = jnp.pad(hidden_RTD, ((0, 0), (0, pad), (0, 0))), jnp.pad(next_RT, ((0, 0), (0, pad)))

    def of_chunk(first: jax.Array) -> Any:
        hidden_RcD = jax.lax.dynamic_slice_in_dim(hidden_RTD, first, chunk, axis=1)
        next_Rc = jax.lax.dynamic_slice_in_dim(next_RT, first, chunk, axis=1)
        logits_RcV = reshard(model.logits(hidden_RcD), ("batch", None, None)).astype(jnp.float32)
        all_RcV = jax.nn.log_softmax(logits_RcV, axis=-1)[:, :, :vocab_size]
        own_Rc = jnp.sum(jnp.where(next_Rc[..., None] == jnp.arange(all_RcV.shape[2]), all_RcV, 0.0), axis=-1)
        return own_Rc, *jax.lax.top_k(all_RcV, top)

    found = jax.lax.map(of_chunk, jnp.arange(0, length + pad, chunk))
    whole = (jnp.moveaxis(reshard(x, [None] * x.ndim), 0, 1) for x in found)  # of [chunks, R, c, ...]
    return tuple(x.reshape(rows, length + pad, *x.shape[3:]) for x in whole)
