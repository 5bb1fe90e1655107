"""/v1/chat/completions: the model answers in a conversation, in the form that was asked for, or calls tools."""

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from lmkit.decode.request import MAX_TOP_LOGPROBS, Request, TokenEvent
from lmkit.serve.answers import Events, answer
from lmkit.serve.call import Call, call_of
from lmkit.serve.completions import head_of, request_of, taken, told, usage, written_by
from lmkit.serve.conversation import Tools, messages_of, split_calls, tools_of
from lmkit.serve.errors import bad
from lmkit.serve.fields import Fields
from lmkit.serve.formats import constraint_of
from lmkit.serve.grammar import CALL
from lmkit.serve.parameters import Writing, writing_of
from lmkit.serve.served import Served, check_ids, room_for
from lmkit.serve.texts import Piece, Texts, whole

_NOT_HERE = {
    "audio": "the model writes text",
    "function_call": "it is tool_choice today",
    "functions": "they are tools today",
    "prediction": "tokens are not guessed ahead",
    "reasoning_effort": "the model has no such setting",
    "verbosity": "the model has no such setting",
    "web_search_options": "the server reaches no web",
}


class Asked(NamedTuple):
    """A request that has passed its checks."""

    prompt: list[int]
    logprobs: int | None
    writing: Writing
    tools: Tools
    requests: list[Request]


async def chat(request: HttpRequest) -> Response:
    """The route."""
    served, call, asked = await taken(request, _asked)
    streams = [served.stream(asked.prompt, asked.writing.stop) for _ in asked.requests]
    head = head_of("chatcmpl", served, asked.writing)
    call.texts = {"prompt": served.codec.decode(asked.prompt)}  # type: ignore[union-attr]
    if not asked.writing.stream:
        return await answer(request, _once(served, asked, streams, head | {"object": "chat.completion"}, call))
    texts = Texts(served.engine, asked.requests, streams, call)  # type: ignore[arg-type]
    return Events(_stream(served, asked, texts, head | {"object": "chat.completion.chunk"}), texts.cancel)


def _asked(request: HttpRequest, fields: Fields, served: Served) -> Asked:
    """Takes the members. Raises Refused for a mistake in one."""
    conversation = served.conversation
    if conversation is None:
        raise bad(
            "messages",
            "the model has no chat template: ask /v1/completions, or serve it with tokenizer.chat_template=FILE.jinja",
            "no_chat_template",
        )
    messages, tools = messages_of(fields), tools_of(fields, conversation)
    tops = fields.integer("top_logprobs", -1, 0, MAX_TOP_LOGPROBS)
    logprobs = max(tops, 0) if fields.flag("logprobs") else None
    if tops >= 0 and logprobs is None:
        raise bad("top_logprobs", "top_logprobs: it goes with logprobs=true")
    old, asked = fields.take("max_tokens", int), fields.take("max_completion_tokens", int)
    if old is not None and asked is not None and old != asked:
        raise bad("max_tokens", f"max_tokens={old} and max_completion_tokens={asked}: give one of them")
    name, asked = ("max_tokens", old) if asked is None and old is not None else ("max_completion_tokens", asked)
    if asked is not None and asked < 1:
        raise bad(name, f"{name}: {asked}: it must be at least 1")
    writing, constraint = writing_of(fields, served.vocab_size), constraint_of(fields, served)
    for member, why in _NOT_HERE.items():
        fields.refuse(member, why)
    fields.refuse("modalities", "the model writes text", ["text"])
    fields.refuse("service_tier", "there is one kind of service", "auto", "default")
    fields.refuse("store", "nothing is stored", False)
    fields.refuse("metadata", "nothing is stored", {})
    fields.done()
    if tools.forced:
        if constraint is not None:
            raise bad("response_format", "response_format: it does not go with a tool_choice that asks for a call")
        assert served.grammars is not None
        constraint = served.grammars.calls(tools.forced, "tools")
    prompt = check_ids(conversation.encode(messages, tools.tools), "messages", served)
    most = room_for(request, served, [prompt], asked, writing.n, name, 1 << 30)
    base = request_of(writing, call_of(request.scope).owner, logprobs or 0)
    requests = [
        base._replace(tokens=tuple(prompt), max_new_tokens=most, seed=writing.seed_of(choice),
                      grammar=constraint.fresh() if constraint else None)
        for choice in range(writing.n)
    ]  # fmt: skip
    return Asked(prompt, logprobs, writing, tools, requests)


def _logprobs(served: Served, tokens: Sequence[TokenEvent], tops: int | None) -> dict[str, Any] | None:
    """As /v1/chat/completions has them: an object a token."""
    if tops is None:
        return None
    vocabulary = served.vocabulary
    assert vocabulary is not None

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": vocabulary.text(token), "logprob": told(logprob), "bytes": list(vocabulary.pieces[token])}

    content = [
        entry(one.token, one.logprob) | {"top_logprobs": [entry(*top) for top in one.top[:tops]]} for one in tokens
    ]
    return {"content": content, "refusal": None}


async def _once(served: Served, asked: Asked, streams: list, head: dict[str, Any], call: Call) -> Response:
    choices, texts = [], Texts(served.engine, asked.requests, streams, call)  # type: ignore[arg-type]
    wholes = await whole(texts, len(asked.requests))
    for number, one in enumerate(wholes):
        message: dict[str, Any] = {"role": "assistant", "content": one.text, "refusal": None}
        finish = one.finish
        if asked.tools.on:
            text, calls = split_calls(one.text, asked.requests[number].seed)
            if calls:
                message |= {"content": text if text.strip() else None, "tool_calls": calls}
                finish = "tool_calls"
        choices.append({"index": number, "message": message, "finish_reason": finish,
                        "logprobs": _logprobs(served, one.tokens, asked.logprobs)})  # fmt: skip
    call.texts = {**call.texts, "answer": [one.text for one in wholes]}
    told_usage = usage([asked.prompt], texts.new_tokens, texts.cached_tokens)
    return JSONResponse(head | written_by(served, texts) | {"choices": choices, "usage": told_usage})


async def _stream(
    served: Served, asked: Asked, texts: Texts, head: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    none = {"usage": None} if asked.writing.include_usage else {}

    def chunk(choice: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        row = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return head | written_by(served, texts) | {"choices": [row]} | none

    async with contextlib.aclosing(texts.pieces()) as pieces:
        for choice in range(len(asked.requests)):
            yield chunk(choice, {"role": "assistant", "content": ""})
        held = [""] * len(asked.requests)
        async for piece in pieces:
            logprobs, deltas = _logprobs(served, piece.tokens, asked.logprobs), [{"content": piece.text}]
            finish = piece.finish
            if asked.tools.on:
                deltas, held[piece.choice], called = _with_calls(piece, held[piece.choice], asked)
                finish = "tool_calls" if called else finish
            for delta in deltas if piece.text or asked.tools.on else []:
                yield chunk(piece.choice, delta, None, logprobs)
                logprobs = None
            if piece.finish:
                yield chunk(piece.choice, {}, finish, logprobs)
    if none:
        head = head | written_by(served, texts)
        yield head | {"choices": [], "usage": usage([asked.prompt], texts.new_tokens, texts.cached_tokens)}


def _with_calls(piece: Piece, held: str, asked: Asked) -> tuple[list[dict[str, Any]], str, bool]:
    """What may be told now, what is held back as it may belong to a call, and whether calls are told."""
    text = held + piece.text
    if piece.finish:
        rest, calls = split_calls(text, asked.requests[piece.choice].seed)
        deltas: list[dict[str, Any]] = [{"content": rest}] if rest.strip() else []
        deltas += [{"tool_calls": [{"index": number} | call]} for number, call in enumerate(calls)]
        return deltas, "", bool(calls)
    at = text.find(CALL)
    if at < 0:
        at = next((len(text) - n for n in range(len(CALL) - 1, 0, -1) if text.endswith(CALL[:n])), len(text))
    sure = text[:at].rstrip()  # white space before a call belongs to it
    return ([{"content": sure}] if sure else []), text[len(sure) :], False
