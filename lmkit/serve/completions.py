"""/v1/completions: a text goes on; with echo, the prompt's own log-probabilities, which lm-eval's harness scores by."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from lmkit.decode.request import MAX_TOP_LOGPROBS, Request, TokenEvent
from lmkit.serve.answers import Events, answer
from lmkit.serve.call import Call, call_of
from lmkit.serve.errors import bad
from lmkit.serve.fields import Fields, shown
from lmkit.serve.formats import constraint_of
from lmkit.serve.parameters import MOST_CHOICES, Writing, writing_of
from lmkit.serve.served import Served, Server, body_of, check_ids, room_for
from lmkit.serve.texts import Texts, Whole, whole

T = TypeVar("T")
_DEFAULT_TOKENS = 16  # OpenAI's
LEAST_LOGPROB = -9999.0  # JSON has no minus infinity


class Asked(NamedTuple):
    """A request that has passed its checks."""

    prompts: list[list[int]]
    shown: list[str]  # what echo puts before each text; "" without it
    echo: bool
    logprobs: int | None
    max_tokens: int
    writing: Writing
    requests: list[Request]


async def completions(request: HttpRequest) -> Response:
    """The route."""
    served, call, asked = await taken(request, _asked)
    streams = [
        served.stream(prompt, asked.writing.stop) for prompt in asked.prompts for _ in range(asked.writing.n)
    ]  # fmt: skip
    head = head_of("cmpl", served, asked.writing) | {"object": "text_completion"}
    call.texts = {"prompt": [served.codec.decode(one) for one in asked.prompts]}  # type: ignore[union-attr]
    if not asked.writing.stream:
        return await answer(request, _once(served, asked, streams, head, call))
    texts = Texts(served.engine, asked.requests, streams, call)  # type: ignore[arg-type]
    return Events(_stream(served, asked, texts, head), texts.cancel)


async def taken(
    request: HttpRequest, take: Callable[[HttpRequest, Fields, Served], T]
) -> tuple[Served, Call, T]:  # fmt: skip
    """The model, the call, and what `take` makes of the request's members, on a thread."""
    server: Server = request.app.state.server
    fields, served = await body_of(request, server)
    return served, call_of(request.scope), await asyncio.to_thread(take, request, fields, served)


def head_of(kind: str, served: Served, writing: Writing) -> dict[str, Any]:
    """What every answer and every piece of a stream begin with."""
    return {
        "id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name,
        "system_fingerprint": served.fingerprint, "seed": writing.seed,
    }  # fmt: skip


def _asked(request: HttpRequest, fields: Fields, served: Served) -> Asked:
    """Takes the members. Raises Refused for a mistake in one."""
    assert served.engine is not None
    prompts, texts = _prompts(fields, served)
    echo, tops = fields.flag("echo"), fields.integer("logprobs", -1, 0, MAX_TOP_LOGPROBS)
    logprobs = None if tops < 0 else tops
    asked = fields.take("max_tokens", int)
    if asked is not None and asked < (0 if echo else 1):
        raise bad("max_tokens", f"max_tokens: {asked}: it must be at least {0 if echo else 1}")
    writing = writing_of(fields, served.vocab_size)
    fields.refuse("best_of", "ask for n texts and choose among them", writing.n)
    fields.refuse("suffix", "the model writes what follows a text", "")
    constraint = constraint_of(fields, served)
    fields.done()
    if writing.stream and echo:
        raise bad("echo", "echo: it does not go with stream=true")
    if len(prompts) * writing.n > MOST_CHOICES:
        raise bad("n", f"n={writing.n} for {len(prompts)} prompts: at most {MOST_CHOICES} texts in a request")
    most = room_for(request, served, prompts, asked, writing.n, "max_tokens", _DEFAULT_TOKENS)
    base = request_of(writing, call_of(request.scope).owner, logprobs or 0)
    requests = [
        base._replace(tokens=tuple(prompt), max_new_tokens=most, seed=writing.seed_of(choice),
                      grammar=constraint.fresh() if constraint else None)
        for prompt in prompts for choice in range(writing.n)
    ]  # fmt: skip
    return Asked(prompts, texts, echo, logprobs, most, writing, requests)


def request_of(writing: Writing, owner: str, top_logprobs: int) -> Request:
    """What the texts of a request have in common."""
    return Request(
        (), 1, writing.sampling, presence_penalty=writing.presence_penalty,
        frequency_penalty=writing.frequency_penalty, logit_bias=writing.logit_bias, top_logprobs=top_logprobs,
        ignore_end=writing.ignore_end, owner=owner,
    )  # fmt: skip


def _prompts(fields: Fields, served: Served) -> tuple[list[list[int]], list[str]]:
    """The ids of each prompt, and its text. A prompt is a text or ids; there may be several in a list."""
    assert served.codec is not None
    value = fields.take("prompt", str, list)
    if value is None or value == []:
        raise bad("prompt", "prompt: give a text, or ids of tokens, or a list of these")
    many = value if isinstance(value, list) and not all(type(one) is int for one in value) else [value]
    if len(many) > MOST_CHOICES:
        raise bad("prompt", f"prompt: {len(many)} of them; at most {MOST_CHOICES}")
    prompts, texts = [], []
    for one in many:
        if isinstance(one, str):
            ids, text = served.codec.encode(one), one
        elif isinstance(one, list) and all(type(token) is int for token in one):
            ids, text = one, ""
        else:
            raise bad("prompt", f"prompt: {shown(one)} is neither a text nor a list of ids")
        prompts.append(check_ids(ids, "prompt", served))
        texts.append(text or served.codec.decode(ids))
    return prompts, texts


async def _once(served: Served, asked: Asked, streams: list, head: dict[str, Any], call: Call) -> Response:
    """All texts, when they have ended."""
    scores: list[Any] = [None] * len(asked.prompts)
    if asked.echo and asked.logprobs is not None:
        jobs = [served.scorer.score(prompt, asked.logprobs) for prompt in asked.prompts]
        scores = list(await asyncio.gather(*jobs))
    new, cached, wholes = 0, 0, [Whole("", (), "length")] * len(streams)
    if asked.max_tokens:
        texts = Texts(served.engine, asked.requests, streams, call)  # type: ignore[arg-type]
        wholes = await whole(texts, len(streams))
        new, cached = texts.new_tokens, texts.cached_tokens
        head = head | written_by(served, texts)
    choices = []
    for number, one in enumerate(wholes):
        prompt = number // asked.writing.n
        before = asked.shown[prompt] if asked.echo else ""
        logprobs = None
        if asked.logprobs is not None:
            entries = [*(scores[prompt] or ()), *one.tokens]
            logprobs = _logprobs(served, entries, asked.logprobs, 0)
        choices.append(
            {"index": number, "text": before + one.text, "logprobs": logprobs, "finish_reason": one.finish}
        )  # fmt: skip
    call.texts = {**call.texts, "answer": [one.text for one in wholes]}
    return JSONResponse(head | {"choices": choices, "usage": usage(asked.prompts, new, cached)})


async def _stream(
    served: Served, asked: Asked, texts: Texts, head: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    none = {"usage": None} if asked.writing.include_usage else {}
    offsets = [0] * len(asked.requests)
    async with contextlib.aclosing(texts.pieces()) as pieces:
        async for piece in pieces:
            logprobs = None
            if asked.logprobs is not None:
                logprobs = _logprobs(served, piece.tokens, asked.logprobs, offsets[piece.choice])
                offsets[piece.choice] += sum(len(served.vocabulary.text(one.token)) for one in piece.tokens)  # type: ignore[union-attr]
            choice = {"index": piece.choice, "text": piece.text, "logprobs": logprobs,
                      "finish_reason": piece.finish or None}  # fmt: skip
            yield head | written_by(served, texts) | {"choices": [choice]} | none
    if none:
        head = head | written_by(served, texts)
        yield head | {"choices": [], "usage": usage(asked.prompts, texts.new_tokens, texts.cached_tokens)}


def _logprobs(served: Served, entries: Sequence[TokenEvent], tops: int, offset: int) -> dict[str, Any]:
    """As /v1/completions has them: lists side by side. The first token of a prompt has none."""
    vocabulary = served.vocabulary
    assert vocabulary is not None
    found: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one in entries:
        first = one.logprob != one.logprob  # NaN
        found["tokens"].append(vocabulary.key(one.token))
        found["token_logprobs"].append(None if first else told(one.logprob))
        found["top_logprobs"].append(
            None if first or not tops else {vocabulary.key(token): told(value) for token, value in one.top}
        )
        found["text_offset"].append(offset)
        offset += len(vocabulary.text(one.token))
    return found


def told(logprob: float) -> float:
    """A log-probability as JSON can say it."""
    return max(float(logprob), LEAST_LOGPROB)


def written_by(served: Served, texts: Texts) -> dict[str, str]:
    """What an answer says of the parameters that wrote it: a reload may have come since the request."""
    return {"system_fingerprint": served.fingerprints[texts.version]}


def usage(prompts: Sequence[Sequence[int]], new: int, cached: int) -> dict[str, Any]:
    """Tokens of a request."""
    before = sum(map(len, prompts))
    return {"prompt_tokens": before, "completion_tokens": new, "total_tokens": before + new,
            "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip
