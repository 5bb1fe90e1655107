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
from lmkit.serve.embeddings import MOST_TEXTS, every, hidden_of, texts_of
from lmkit.serve.errors import bad
from lmkit.serve.fields import Fields
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
    given: list[Any] = await asyncio.to_thread(_images if served.codec is None else texts_of, fields, served)
    fields.text("user")
    fields.done()
    return await answer(request, _answer(request, served, given))


def _images(fields: Fields, served: Served) -> list[Any]:
    """What `input` has, for a model of images."""
    value = fields.take("input", str, list)
    many = value if isinstance(value, list) else [value]
    if value is None or not 0 < len(many) <= MOST_TEXTS:
        raise bad("input", f"input: give an image, or 1 to {MOST_TEXTS} of them")
    return many


async def _answer(request: Request, served: Served, texts: list[Any]) -> Response:
    count = 0 if served.codec is None else sum(map(len, texts))
    call_of(request.scope).charge(count, 0)
    rows = [dict(zip(served.labels, one.tolist(), strict=True)) for one in await every(served.classifier.ask, texts)]
    data = [
        {"object": "classification", "index": number, "label": max(row, key=row.__getitem__), "probs": row}
        for number, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})
