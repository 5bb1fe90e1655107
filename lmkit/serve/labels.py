"""/v1/classify: the probability of each of a classifier's classes. R rows, T tokens, C classes."""

import asyncio
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lmkit.parallel.rules import reshard
from lmkit.serve.answers import answer
from lmkit.serve.call import call_of
from lmkit.serve.embeddings import every, hidden_of, texts_of
from lmkit.serve.served import Served, body_of


def probabilities(
    merge: Callable[[Any], Any], config: Any, params: Any, tokens_RT: jax.Array, num_R: jax.Array
) -> jax.Array:
    """float32 [R, C] that sum to 1."""
    model = merge(params)
    hidden_RTD = hidden_of(model, config, tokens_RT, jnp.arange(tokens_RT.shape[1]) < num_R[:, None])
    return reshard(jax.nn.softmax(model.class_logits(hidden_RTD), axis=-1), (None, None))


async def classify(request: Request) -> Response:
    """The route."""
    fields, served = await body_of(request, request.app.state.server)
    texts = await asyncio.to_thread(texts_of, fields, served)
    fields.text("user")
    fields.done()
    return await answer(request, _answer(request, served, texts))


async def _answer(request: Request, served: Served, texts: list[list[int]]) -> Response:
    count = sum(map(len, texts))
    call_of(request.scope).charge(count, 0)
    rows = [dict(zip(served.labels, one.tolist(), strict=True)) for one in await every(served.classifier.ask, texts)]
    data = [
        {"object": "classification", "index": number, "label": max(row, key=row.__getitem__), "probs": row}
        for number, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})
