"""What is wrong with a request is said in OpenAI's shape and names the member; nothing takes the server down."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import ScriptedEngine, running_model, served_bytes

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running_model(served_bytes(ScriptedEngine())) as address, httpx.Client(base_url=address, timeout=30) as found:
        yield found


def format_of(**values: Any) -> dict:
    return {"messages": HI, "response_format": values}


# path, body, the member that is wrong, a word of the message
MISTAKES: list[tuple[str, Any, str | None, str]] = [
    ("completions", b"{", None, "not JSON"),
    ("completions", b'{"prompt": NaN}', None, "NaN"),
    ("completions", b'{"prompt": "\\ud800"}', None, "not JSON"),
    ("completions", b"[" * 100_000, None, "not JSON"),
    ("completions", [], None, "send a JSON object"),
    ("completions", {}, "prompt", "give a text"),
    ("completions", {"prompt": []}, "prompt", "give a text"),
    ("completions", {"prompt": 5}, "prompt", "5 is not a string or a list"),
    ("completions", {"prompt": [1, "a"]}, "prompt", "neither a text nor a list of ids"),
    ("completions", {"prompt": [[1], []]}, "prompt", "no token"),
    ("completions", {"prompt": [257]}, "prompt", "no token 257, they are 0 to 256"),
    ("completions", {"prompt": [-1]}, "prompt", "no token -1"),
    ("completions", {"prompt": "x", "max_tokens": 0}, "max_tokens", "at least 1"),
    ("completions", {"prompt": "x", "max_tokens": 2.5}, "max_tokens", "2.5 is not a whole number"),
    ("completions", {"prompt": "x", "max_tokens": True}, "max_tokens", "true is not a whole number"),
    ("completions", {"prompt": "x" * 500, "max_tokens": 99}, "max_tokens", "501 tokens and max_tokens=99 need 600"),
    ("completions", {"prompt": "x" * 600}, "prompt", "601 tokens"),
    ("completions", {"prompt": "x", "temperature": 2.1}, "temperature", "at most 2"),
    ("completions", {"prompt": "x", "temperature": "hot"}, "temperature", '"hot" is not a number'),
    ("completions", {"prompt": "x", "temperature": 10**400}, "temperature", "out of every range"),
    ("completions", {"prompt": "x", "top_p": -0.1}, "top_p", "at least 0"),
    ("completions", {"prompt": "x", "min_p": 1.1}, "min_p", "at most 1"),
    ("completions", {"prompt": "x", "top_k": -2}, "top_k", "at least -1"),
    ("completions", {"prompt": "x", "repetition_penalty": 0}, "repetition_penalty", "at least 0.01"),
    ("completions", {"prompt": "x", "presence_penalty": 3}, "presence_penalty", "at most 2"),
    ("completions", {"prompt": "x", "n": 0}, "n", "at least 1"),
    ("completions", {"prompt": ["x"] * 65, "n": 2}, "n", "at most 128 texts"),
    ("completions", {"prompt": "x", "seed": 2**63}, "seed", "64 bits"),
    ("completions", {"prompt": "x", "stop": [1]}, "stop", "list of strings"),
    ("completions", {"prompt": "x", "stop": [""]}, "stop", "1 to 1000 characters"),
    ("completions", {"prompt": "x", "logit_bias": {"x": 1}}, "logit_bias", "no token"),
    ("completions", {"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias", "-100 to 100"),
    ("completions", {"prompt": "x", "logprobs": 21}, "logprobs", "at most 20"),
    ("completions", {"prompt": "x", "best_of": 2}, "best_of", "not supported"),
    ("completions", {"prompt": "x", "suffix": "y"}, "suffix", "not supported"),
    ("completions", {"prompt": "x", "echo": True, "stream": True}, "echo", "stream"),
    ("completions", {"prompt": "x", "stream_options": {}}, "stream_options", "stream=true"),
    ("completions", {"prompt": "x", "temprature": 1}, "temprature", "Did you mean 'temperature'"),
    ("chat/completions", {}, "messages", "at least one"),
    ("chat/completions", {"messages": ["Hi"]}, "messages", "messages[0]"),
    ("chat/completions", {"messages": [{"role": "king", "content": ""}]}, "messages", "must be one of system"),
    ("chat/completions", {"messages": [{"role": "user"}]}, "messages", "needs a text"),
    ("chat/completions", {"messages": [{"role": "user", "content": "", "mood": 1}]}, "messages", "messages[0].mood"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "image_url"),
    ("chat/completions", {"messages": HI, "top_logprobs": 2}, "top_logprobs", "logprobs=true"),
    ("chat/completions", {"messages": HI, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "one of them"),
    ("chat/completions", {"messages": HI, "max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
    ("chat/completions", {"messages": HI, "functions": []}, "functions", "tools"),
    ("chat/completions", {"messages": HI, "modalities": ["audio"]}, "modalities", "not supported"),
    ("chat/completions", {"messages": HI, "tools": [{}]}, "tools", "tools[0]"),
    ("chat/completions", {"messages": HI, "tool_choice": "required"}, "tool_choice", "no tools"),
    ("chat/completions", {"messages": HI, "tools": [TOOL], "tool_choice": {"type": "x"}}, "tool_choice", "none of"),
    ("chat/completions", {"messages": HI, "parallel_tool_calls": False}, "parallel_tool_calls", "not supported"),
    ("chat/completions", format_of(type="xml"), "response_format.type", "json_schema"),
    ("chat/completions", format_of(type="json_schema"), "response_format.json_schema", "give {name, schema}"),
    ("chat/completions", format_of(type="json_schema", json_schema={"schema": {"type": "foo"}}),
     "response_format.json_schema.schema", "foo"),
    ("chat/completions", format_of(type="json_schema", json_schema={"schema": {"uniqueItems": True}}),
     "response_format.json_schema.schema", "uniqueItems"),
    ("chat/completions", format_of(type="regex", regex="("), "response_format.regex", "unclosed group"),
    ("chat/completions", format_of(type="text", regex="x"), "response_format.regex", "unknown parameter"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "word"), MISTAKES)
def test_a_mistake_is_named(client: httpx.Client, path: str, body: Any, param: str | None, word: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(f"/v1/{path}", content=content)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert word in error["message"], error["message"]
    assert "\n" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_other_paths_and_methods(client: httpx.Client) -> None:
    assert client.get("/v1/nothing").status_code == client.get("/").status_code == 404
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/v1/completions").json()["error"]["code"] == "method_not_allowed"
    found = client.post("/v1/classify", json={"input": "x"})
    assert found.status_code == 404
    assert "it answers /v1/completions" in found.json()["error"]["message"]


SMALL = st.integers(-3, 300) | st.booleans() | st.none() | st.floats(allow_nan=False) | st.text(max_size=8)
NAMES = st.text(max_size=8)
JSON = st.recursive(SMALL, lambda one: st.lists(one, max_size=3) | st.dictionaries(NAMES, one, max_size=3))
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "critic"])
KINDS = st.sampled_from(["text", "json_object", "json_schema", "regex"])
MESSAGE = {"role": ROLES, "content": st.text(max_size=20) | JSON, "tool_calls": JSON, "name": SMALL}
MEMBERS: dict[str, st.SearchStrategy] = {
    "prompt": st.text(max_size=20) | st.lists(st.integers(-1, 257), max_size=8) | st.lists(NAMES, max_size=3),
    "messages": st.lists(st.fixed_dictionaries({}, optional=MESSAGE), max_size=3),
    "input": st.text(max_size=20) | JSON,
    "max_tokens": st.integers(-1, 40),
    "n": st.integers(-1, 4),
    "temperature": st.floats(-1, 3),
    "top_p": st.floats(-1, 2),
    "top_k": st.integers(-2, 400),
    "stream": st.booleans(),
    "echo": st.booleans(),
    "seed": st.integers(),
    "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=2),
    "logprobs": st.integers(-1, 21) | st.booleans(),
    "top_logprobs": st.integers(-1, 21),
    "logit_bias": st.dictionaries(st.text("0123456789", max_size=3), st.floats(-101, 101)),
    "response_format": st.fixed_dictionaries({"type": KINDS}, optional={"json_schema": JSON, "regex": NAMES}),
    "tools": JSON,
    "tool_choice": JSON,
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "encoding_format": st.sampled_from(["float", "base64", "x"]),
    "model": st.sampled_from(["tiny", "other"]),
}
GOOD: dict[str, Any] = {
    "/v1/completions": {"prompt": "x", "max_tokens": 4},
    "/v1/chat/completions": {"messages": HI, "max_tokens": 4},
    "/v1/embeddings": {"input": "x"},
    "/v1/classify": {"input": "x"},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and a body that is good but for some members."""
    path = draw(st.sampled_from(list(GOOD)))
    if draw(st.integers(0, 15)) == 0:
        return path, draw(st.binary(max_size=40))
    body = dict(GOOD[path])
    for name in draw(st.lists(st.sampled_from(list(MEMBERS)), max_size=3, unique=True)):
        body[name] = draw(MEMBERS[name] if draw(st.booleans()) else MEMBERS[name] | SMALL)
    return path, json.dumps(body).encode()


class Rows:
    """Vectors of any text."""

    async def ask(self, ids: list[int]) -> Any:
        import numpy as np

        return np.ones(4, np.float32)

    async def score(self, ids: list[int], tops: int) -> list:
        from lmkit.decode.request import TokenEvent

        return [TokenEvent(one, -2.0) for one in ids]

    def close(self) -> None: ...


def fuzzed(number: int) -> dict[int, int]:
    """So many fuzzed requests: only 2xx and 4xx, errors in one shape, and the engine has no request left; by status."""
    engine, rows = ScriptedEngine(), Rows()
    served = served_bytes(engine, scorer=rows, embedder=rows, classifier=rows, labels=("a", "b", "c", "d"))
    statuses: dict[int, int] = {}
    with running_model(served, tuple(GOOD)) as address, httpx.Client(base_url=address, timeout=60) as client:

        @settings(max_examples=number, deadline=None, database=None, derandomize=True,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(bodies())
        def ask(asked: tuple[str, bytes]) -> None:
            path, body = asked
            answer = client.post(path, content=body)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            if answer.status_code == 200:
                streamed = answer.headers["content-type"].startswith("text/event-stream")
                assert answer.text.rstrip().endswith("data: [DONE]") if streamed else answer.json() is not None
            else:
                assert 400 <= answer.status_code < 500, (path, body, answer.text)
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
                assert answer.json()["error"]["message"]

        ask()
        alive = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 3, "seed": 1})
        assert alive.status_code == 200
    assert engine.running == 0
    return statuses


def test_fuzzed_requests() -> None:
    statuses = fuzzed(200)
    assert statuses[200] > 10
    assert statuses[400] > 50


@pytest.mark.slow
def test_many_fuzzed_requests() -> None:
    statuses = fuzzed(2000)
    assert statuses[200] > 100
    assert statuses[400] > 500
