"""The API through the official client, over a real socket; the engine says what a test wants."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from serving import HERMES, ScriptedEngine, at_once, hashed_letter, running, running_model, served_bytes

from lmkit.decode.request import Request
from lmkit.serve.served import Server

CHAT = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["a"],
    "additionalProperties": False,
}}}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture(scope="module")
def address(engine: ScriptedEngine) -> Iterator[str]:
    with running_model(served_bytes(engine)) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_a_text_goes_on(client: openai.OpenAI) -> None:
    found = client.completions.create(model="tiny", prompt="ab", seed=3, max_tokens=5)
    (choice,) = found.choices
    assert len(choice.text) == 5
    assert choice.finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 5)  # a byte each, and the end before them
    assert found.usage.prompt_tokens_details.cached_tokens == 1
    assert found.system_fingerprint == "fp_tiny"
    assert found.seed == 3
    assert client.completions.create(model="tiny", prompt="ab", seed=3, max_tokens=5).choices[0].text == choice.text


def test_a_seed_that_was_drawn_is_told(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=8)
    again = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=8, seed=found.seed)
    assert again.choices[0].message.content == found.choices[0].message.content


@pytest.mark.parametrize(("at", "found"), [(0, "fp_new"), (2, "fp_tiny")])
@pytest.mark.parametrize("chat", [True, False])
def test_the_fingerprint_is_that_of_the_parameters_that_wrote_the_text(at: int, found: str, chat: bool) -> None:
    """A reload comes between the request and its first token, or while the text runs."""

    def say(request: Request, index: int) -> int:
        if index == at and len(served.fingerprints) == 1:
            served.fingerprints.append("fp_new")
            engine.version = int(at == 0)
        return 97

    for stream in (False, True):
        engine = ScriptedEngine(say)
        served = served_bytes(engine)
        with running_model(served) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
            given = {"model": "tiny", "max_tokens": 4, "stream": stream}
            if chat:
                answer = client.chat.completions.create(messages=CHAT, **given)
            else:
                answer = client.completions.create(prompt="ab", **given)
            said = [one.system_fingerprint for one in answer] if stream else [answer.system_fingerprint]
        assert set(said[-2:]) == {found}


def test_each_of_n_texts_has_a_seed_of_its_own(client: openai.OpenAI) -> None:
    many = client.completions.create(model="tiny", prompt=["a", "b"], n=3, seed=1, max_tokens=9)
    assert [one.index for one in many.choices] == list(range(6))
    texts = [one.text for one in many.choices]
    assert len(set(texts)) == 6
    alone = client.completions.create(model="tiny", prompt="b", seed=1, max_tokens=9)
    assert alone.choices[0].text == texts[3]
    assert many.usage.completion_tokens == 54


def test_a_stop_string_ends_a_text_and_frees_its_slot() -> None:
    engine = ScriptedEngine(wait_sec=0.003)
    with running_model(served_bytes(engine)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        whole = client.completions.create(model="tiny", prompt="q", seed=5, max_tokens=40).choices[0].text
        asked = {"model": "tiny", "prompt": "q", "seed": 5, "max_tokens": 400, "stop": ["#", whole[5:8]]}
        found = client.completions.create(**asked).choices[0]
        assert (found.text, found.finish_reason) == (whole[: whole.index(whole[5:8])], "stop")
        until(lambda: engine.running == 0)
        assert engine.ended == {"length": 1, "cancelled": 1}


def test_a_text_that_stops_frees_its_slot_while_others_go_on() -> None:
    engine = ScriptedEngine(lambda request, index: b"#-"[request.tokens[-1] == 98], wait_sec=0.005)
    with running_model(served_bytes(engine)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        asked = {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 400, "stop": "#", "stream": True}
        with client.completions.create(**asked) as stream:
            next(one for one in stream if one.choices[0].finish_reason == "stop")
            until(lambda: engine.running == 1)
            assert engine.ended == {"cancelled": 1}
        until(lambda: engine.running == 0)


def test_the_parameters_reach_the_engine(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    client.chat.completions.create(
        model="tiny", messages=CHAT, max_completion_tokens=2, temperature=0.5, top_p=0.9, presence_penalty=0.25,
        frequency_penalty=-0.5, logit_bias={"65": -3}, seed=-7,
        extra_body={"top_k": 4, "min_p": 0.125, "repetition_penalty": 1.5, "ignore_eos": True},
    )  # fmt: skip
    seen = engine.seen[-1]
    assert seen.sampling == (0.5, 4, 0.9, 0.125, 1.5)
    assert (seen.presence_penalty, seen.frequency_penalty, seen.logit_bias) == (0.25, -0.5, {65: -3.0})
    assert (seen.max_new_tokens, seen.ignore_end) == (2, True)
    assert 0 <= seen.seed < 2**31
    assert bytes(seen.tokens).decode().endswith("[user] Hi[assistant] ")


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    asked = {
        "model": "tiny",
        "messages": CHAT,
        "seed": 9,
        "max_tokens": 12,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**asked)
    texts, tokens, finish = ["", ""], [[], []], [None, None]
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        for one in chunk.choices:
            texts[one.index] += one.delta.content or ""
            tokens[one.index] += one.logprobs.content if one.logprobs else []
            finish[one.index] = one.finish_reason or finish[one.index]
    assert texts == [one.message.content for one in whole.choices]
    assert tokens == [one.logprobs.content for one in whole.choices]
    assert finish == ["length", "length"]
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert [one.token for one in whole.choices[0].logprobs.content] == list(texts[0])
    assert whole.choices[0].logprobs.content[0].bytes == [ord(texts[0][0])]
    assert [one.token for one in whole.choices[0].logprobs.content[0].top_logprobs] == ["a", "b"]


def test_completions_stream_with_log_probabilities(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "x", "seed": 2, "max_tokens": 6, "logprobs": 2}
    whole = client.completions.create(**asked).choices[0]
    chunks = [one.choices[0] for one in client.completions.create(**asked, stream=True)]
    assert "".join(one.text for one in chunks) == whole.text
    assert [x for one in chunks for x in one.logprobs.text_offset] == whole.logprobs.text_offset == list(range(6))
    assert whole.logprobs.tokens == list(whole.text)
    assert whole.logprobs.top_logprobs[0] == {"a": -1.0, "b": -2.0}


def test_the_async_client(address: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=CHAT, stream=True, seed=4, max_tokens=7
            )  # fmt: skip
            return [chunk.choices[0].delta.content or "" async for chunk in stream]

    assert len("".join(asyncio.run(ask()))) == 7


def test_sixteen_clients_at_once_get_what_each_gets_alone(address: str) -> None:
    def ask(number: int) -> dict:
        body = {"prompt": f"p{number}", "seed": number, "max_tokens": 20, "logprobs": 3}
        return session.post("/v1/completions", json=body).json()["choices"]

    session = httpx.Client(base_url=address, timeout=60)
    alone = [ask(number) for number in range(16)]
    assert at_once(ask, 16) == alone


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(stream: bool) -> None:
    engine = ScriptedEngine(wait_sec=0.02)
    with running_model(served_bytes(engine)) as address, httpx.Client() as client:
        body = {"prompt": "x", "max_tokens": 400, "stream": stream}
        with (
            contextlib.suppress(httpx.ReadTimeout),
            client.stream("POST", f"{address}/v1/completions", json=body, timeout=0.3) as answer,
        ):
            next(answer.iter_lines())
        until(lambda: engine.running == 0)
        assert engine.ended == {"cancelled": 1}


def test_json_of_a_schema(client: openai.OpenAI) -> None:
    inner = {"name": {"enum": ["ann", "bob"]}, "n": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}
    schema = {"type": "object", "required": ["name", "n"], "additionalProperties": False, "properties": inner}
    format = {"type": "json_schema", "json_schema": {"name": "row", "schema": schema, "strict": True}}
    found = client.chat.completions.create(model="tiny", messages=CHAT, response_format=format, n=3, seed=1)
    for one in found.choices:
        row = json.loads(one.message.content)
        assert row["name"] in ("ann", "bob")
        assert all(type(x) is bool for x in row["n"])
        assert one.finish_reason == "stop"
    assert len({one.message.content for one in found.choices}) > 1


def test_text_of_a_regular_expression(client: openai.OpenAI) -> None:
    format = {"type": "regex", "regex": "(yes|no){2}!"}
    found = client.completions.create(model="tiny", prompt="x", n=3, extra_body={"response_format": format})
    assert {one.text for one in found.choices} <= {"yesyes!", "yesno!", "noyes!", "nono!"}


def test_a_tool_that_must_be_called(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    asked = {"model": "tiny", "messages": CHAT, "tools": [TOOL], "tool_choice": "required", "seed": 2}
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "add"
    assert 0 <= json.loads(call.function.arguments)["a"] <= 9
    assert choice.message.content is None
    assert b'"name": "add"' in bytes(engine.seen[-1].tokens)
    parts = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    streamed = [one for part in parts for one in part.delta.tool_calls or []]
    assert [one.function.arguments for one in streamed] == [call.function.arguments]
    assert parts[-1].finish_reason == "tool_calls"
    assert not any(part.delta.content for part in parts)


def test_tools_that_may_be_called() -> None:
    said = (
        'Well: <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call> <tool_call>{broken}</tool_call> <tool'
    )

    def say(request: Request, index: int) -> int | None:
        return said.encode()[index] if index < len(said) else None

    with running_model(served_bytes(ScriptedEngine(say))) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        asked = {"model": "tiny", "messages": CHAT, "tools": [TOOL]}
        message = client.chat.completions.create(**asked).choices[0].message
        assert message.content == "Well: <tool_call>{broken}</tool_call> <tool"
        assert [one.function.arguments for one in message.tool_calls] == ['{"a": 1}']
        parts = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
        assert "".join(part.content or "" for part in parts) == message.content
        assert [one.function.name for part in parts for one in part.tool_calls or []] == ["add"]
        plain = client.chat.completions.create(**asked, tool_choice="none").choices[0].message
        assert (plain.content, plain.tool_calls) == (said, None)


def test_calls_and_their_results_are_told_to_the_template(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    messages = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "4"}]}]  # fmt: skip
    client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    prompt = bytes(engine.seen[-1].tokens).decode()
    assert '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>' in prompt
    assert "[tool] 4" in prompt


def test_a_template_without_tools_refuses_them() -> None:
    for template, why in (("{{ messages[0].content }}", "no place for tools"), ("{{ tools }}", "spell tool calls")):
        with running_model(served_bytes(ScriptedEngine(), template)) as address:
            body = {"messages": CHAT, "tools": [TOOL]}
            found = httpx.post(f"{address}/v1/chat/completions", json=body)
            assert found.status_code == 400
            assert found.json()["error"]["param"] == "tools"
            assert why in found.json()["error"]["message"]


def test_without_a_chat_template() -> None:
    with running_model(served_bytes(ScriptedEngine(), "")) as address:
        found = httpx.post(f"{address}/v1/chat/completions", json={"messages": CHAT})
        assert found.status_code == 400
        assert found.json()["error"]["code"] == "no_chat_template"
        assert "/v1/completions" in found.json()["error"]["message"]


def test_models(client: openai.OpenAI, address: str) -> None:
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "lmkit"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("huge")
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.completions.create(model="gpt-5", prompt="x")


def test_the_tokenizer(address: str) -> None:
    found = httpx.post(f"{address}/tokenize", json={"prompt": "é", "add_special_tokens": False}).json()
    assert found == {"tokens": [195, 169], "count": 2}
    assert httpx.post(f"{address}/tokenize", json={"prompt": "a"}).json()["tokens"] == [256, 97]
    assert httpx.post(f"{address}/detokenize", json={"tokens": [195, 169]}).json() == {"prompt": "é"}
    info = httpx.get(f"{address}/tokenizer_info").json()
    assert info == {"eos_token": None, "bos_token": None, "chat_template": HERMES}


def test_half_characters_wait_for_their_other_half() -> None:
    said = "né🙂".encode()

    def say(request: Request, index: int) -> int | None:
        return said[index] if index < len(said) else None

    with running_model(served_bytes(ScriptedEngine(say))) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        pieces = [one.choices[0].text for one in client.completions.create(model="tiny", prompt="x", stream=True)]
        assert [one for one in pieces if one] == ["n", "é", "🙂"]
        tops = client.completions.create(model="tiny", prompt="x", logprobs=1).choices[0].logprobs.tokens
        assert tops == ["n", "bytes:\\xc3", "bytes:\\xa9", *(f"bytes:\\x{one:02x}" for one in "🙂".encode())]


def test_a_full_queue_and_an_engine_that_stops() -> None:
    engine = ScriptedEngine(slots=1, wait_sec=0.01)
    with running_model(served_bytes(engine)) as address:
        found = httpx.post(f"{address}/v1/completions", json={"prompt": "x", "n": 2})
        assert found.status_code == 429
        assert found.headers["retry-after"] == "3"
        assert found.json()["error"]["type"] == "rate_limit_error"
        until(lambda: engine.running == 0)
        engine.stopped = True
        assert httpx.post(f"{address}/v1/completions", json={"prompt": "x"}).status_code == 503


def test_an_engine_that_fails_is_told() -> None:
    def say(request: Request, index: int) -> int | None:
        return None if index == 3 else hashed_letter(request, index)

    engine = ScriptedEngine(say)
    submit = engine.submit
    engine.submit = lambda request, emit: submit(  # type: ignore[method-assign]
        request,
        lambda event: emit(event if hasattr(event, "token") else event._replace(reason="error", message="sank")),
    )
    with running_model(served_bytes(engine)) as address:
        found = httpx.post(f"{address}/v1/completions", json={"prompt": "x"})
        assert found.status_code == 500
        assert found.json()["error"]["message"] == "sank"
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="sank"):
            list(client.completions.create(model="tiny", prompt="x", stream=True))


def test_before_it_is_ready() -> None:
    from lmkit.serve.app import make_app

    with running(make_app(Server("tiny", ("/v1/completions",)))) as address:
        found = httpx.post(f"{address}/v1/completions", json={"prompt": "x"})
        assert found.status_code == 503
        assert "retry-after" in found.headers
        found = httpx.post(f"{address}/v1/embeddings", json={"input": "x"})
        assert found.status_code == 404
        assert "it answers /v1/completions" in found.json()["error"]["message"]


def until(holds, seconds: float = 10) -> None:
    """Waits for what is to become true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
