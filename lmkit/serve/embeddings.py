"""/v1/embeddings: a unit vector for a text. R rows, T tokens, D embedding."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lmkit.config.sections.families import BERTConfig
from lmkit.config.sections.serve import EmbeddingPooling
from lmkit.parallel.rules import WHOLE, reshard
from lmkit.serve.answers import answer
from lmkit.serve.call import call_of
from lmkit.serve.errors import bad
from lmkit.serve.fields import Fields, shown
from lmkit.serve.served import Served, body_of, check_ids

MOST_TEXTS = 2048  # OpenAI's


def embed(
    merge: Callable[[Any], Any], config: Any, pooling: EmbeddingPooling, params: Any, tokens_RT: jax.Array,
    num_R: jax.Array,
) -> jax.Array:  # fmt: skip
    """float32 [R, D], each of length 1: what stands for the last block's output of a text, after the last norm."""
    real_RT = jnp.arange(tokens_RT.shape[1]) < num_R[:, None]
    hidden_RTD = hidden_of(merge(params), config, tokens_RT, real_RT)
    if pooling is EmbeddingPooling.mean:
        share_RT = real_RT / num_R[:, None].astype(jnp.float32)
    else:
        place_R = jnp.zeros_like(num_R) if pooling is EmbeddingPooling.cls else num_R - 1
        share_RT = (jnp.arange(tokens_RT.shape[1]) == place_R[:, None]).astype(jnp.float32)
    pooled_RD = jnp.sum(hidden_RTD.astype(jnp.float32) * share_RT[..., None], axis=1)
    norm_R1 = jnp.sqrt(jnp.sum(jnp.square(pooled_RD), axis=1, keepdims=True))
    return reshard(pooled_RD / jnp.maximum(norm_R1, 1e-12), (None, None))


def hidden_of(model: Any, config: Any, tokens_RT: jax.Array, real_RT: jax.Array) -> jax.Array:
    """The stream [R, T, D] of texts, whole on the devices of its rows. Padding is seen by none of their tokens."""
    if isinstance(config, BERTConfig):
        return reshard(model.encode(tokens_RT, reshard(real_RT.astype(jnp.int32), ("batch", "seq"))), WHOLE)
    return reshard(model.hidden(tokens_RT), WHOLE)


async def embeddings(request: Request) -> Response:
    """The route."""
    fields, served = await body_of(request, request.app.state.server)
    texts = await asyncio.to_thread(texts_of, fields, served)
    as_base64 = fields.choice("encoding_format", ("float", "base64"), "float") == "base64"
    fields.refuse("dimensions", "vectors have the model's size")
    fields.text("user")
    fields.done()
    return await answer(request, _answer(request, served, texts, as_base64))


def texts_of(fields: Fields, served: Served) -> list[list[int]]:
    """The ids of each text of `input`: a text, ids, or a list of these."""
    assert served.codec is not None
    value, found = fields.take("input", str, list), []
    if value is None or value == []:
        raise bad("input", "input: give a text, or ids of tokens, or a list of these")
    many = value if isinstance(value, list) and not all(type(one) is int for one in value) else [value]
    if len(many) > MOST_TEXTS:
        raise bad("input", f"input: {len(many)} texts; at most {MOST_TEXTS}")
    for one in many:
        if isinstance(one, str):
            ids = served.codec.encode(one)
        elif isinstance(one, list) and all(type(token) is int for token in one):
            ids = one
        else:
            raise bad("input", f"input: {shown(one)} is neither a text nor a list of ids")
        check_ids(ids, "input", served)
        if len(ids) > served.length:
            raise bad(
                "input", f"input: a text of {len(ids)} tokens; the model takes {served.length}: shorten it",
                "context_length_exceeded",
            )  # fmt: skip
        found.append(ids)
    return found


async def _answer(request: Request, served: Served, texts: list[list[int]], as_base64: bool) -> Response:
    count = sum(map(len, texts))
    call_of(request.scope).charge(count, 0)
    vectors = await every(served.embedder.ask, texts)
    data = [
        {"object": "embedding", "index": number,
         "embedding": base64.b64encode(one.astype("<f4").tobytes()).decode() if as_base64 else one.tolist()}
        for number, one in enumerate(vectors)
    ]  # fmt: skip
    usage = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})


async def every(ask: Callable[[Any], Any], texts: list[Any]) -> list[np.ndarray]:
    """The results of all texts; no more than a batch of them waits at a time, so that clients take turns."""
    room = asyncio.Semaphore(8)

    async def one(ids: Any) -> np.ndarray:
        async with room:
            return await ask(ids)

    return await asyncio.gather(*map(one, texts))
