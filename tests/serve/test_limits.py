"""What one key, and one request, may ask for."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="LOUD: the server is not tested; pip install 'lmkit[serve]'")
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.stand import Stand, error_of

from lmkit.serve.keys import create_key
from lmkit.serve.limits import SPAN_SEC, Limits, Window


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all windows."""
    clock, init = Clock(), Limits.__init__
    monkeypatch.setattr(Limits, "__init__", lambda self, app, max_body: init(self, app, max_body, clock))
    return clock


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 10)), max_size=40), st.integers(10, 25))
def test_no_minute_has_more_than_the_limit_and_the_wait_is_the_shortest(asked: list, limit: int) -> None:
    window, now, taken = Window(), 0.0, []
    for pause, amount in asked:
        now += pause
        wait = window.wait(now, amount, limit)
        if wait == 0:
            window.add(now, amount)
            taken.append((now, amount))
        else:
            used = sum(n for when, n in taken if now - SPAN_SEC < when)
            assert used + amount > limit
            then = now + wait
            left = [n for when, n in taken if then - SPAN_SEC < when - 1e-6]
            before = [n for when, n in taken if then - SPAN_SEC < when + 1e-6]
            assert sum(left) + amount <= limit < sum(before) + amount
    for end, _ in taken:
        assert sum(n for when, n in taken if end - SPAN_SEC < when <= end) <= limit


def test_requests_a_minute(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys.yaml"
    alice, bob = create_key(path, "alice", requests_per_minute=3), create_key(path, "bob")
    stand, write = Stand(keys=path), ("POST", "/v1/write", {"new": 1})
    assert [a.status_code for a in stand.ask(write, write, key=alice)] == [200, 200]
    clock.now += 50
    answers = stand.ask(write, write, write, key=alice)
    assert [a.status_code for a in answers] == [200, 429, 429]
    assert answers[1].headers["retry-after"] == "10"  # then the first two have left the minute
    assert error_of(answers[1])["type"] == "rate_limit_error"
    assert "3 requests a minute" in error_of(answers[1])["message"]
    assert stand.ask(write, key=bob)[0].status_code == 200
    assert stand.ask(("GET", "/figures"), key=alice)[0].status_code == 200  # not of the API
    clock.now += 10
    assert [a.status_code for a in stand.ask(write, write, write, key=alice)] == [200, 200, 429]


def test_tokens_are_reserved_before_and_corrected_after(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys.yaml"
    alice = create_key(path, "alice", tokens_per_minute=100)
    stand = Stand(keys=path)

    def write(prompt: int, most: int, new: int, **more: object) -> tuple:
        return "POST", "/v1/write", {"prompt": prompt, "max": most, "new": new, **more}

    async def at_once() -> list[int]:
        async with stand.client(alice) as client:
            asks = [client.post("/v1/write", json=write(10, 40, 2, sleep=0.02)[2]) for _ in range(3)]
            return sorted(answer.status_code for answer in await asyncio.gather(*asks))

    assert asyncio.run(at_once()) == [200, 200, 429]  # 50 + 50 were reserved, 12 + 12 used
    answers = stand.ask(write(36, 40, 40), write(0, 1, 1), key=alice)
    assert [a.status_code for a in answers] == [200, 429]
    assert "100 tokens a minute" in error_of(answers[1])["message"]
    assert answers[1].headers["retry-after"] == "60"
    clock.now += SPAN_SEC
    assert stand.ask(write(10, 10_000, 5), key=alice)[0].status_code == 200  # a whole minute is free
    assert stand.ask(write(10, 10_000, 5), key=alice)[0].status_code == 429
    (answer,) = stand.ask(write(101, 1, 1), key=alice)
    assert answer.status_code == 400
    assert "the prompt has 101 tokens, and this key may have 100" in error_of(answer)["message"]
    clock.now += SPAN_SEC
    (answer,) = stand.ask(write(10, 40, 3, crash=True), key=alice)
    assert answer.status_code == 500
    assert stand.ask(write(20, 70, 1), key=alice)[0].status_code == 200  # what failed keeps its prompt alone


def test_a_limit_that_is_changed_counts_at_once(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "keys.yaml"
    alice = create_key(path, "alice")
    stand, write = Stand(keys=path), ("POST", "/v1/write", {"new": 1})
    assert {a.status_code for a in stand.ask(*[write] * 5, key=alice)} == {200}
    with path.open("a") as file:
        file.write("  requests_per_minute: 1\n")
    assert [a.status_code for a in stand.ask(write, write, key=alice)] == [200, 429]


def test_the_body_is_limited_whether_its_length_is_said_or_not() -> None:
    stand = Stand(max_body=100)
    fits, over = b'{"text":"' + 80 * b"a" + b'"}', b'{"text":"' + 200 * b"a" + b'"}'
    sent = 0

    async def pieces(body: bytes):
        nonlocal sent
        for start in range(0, len(body), 20):
            sent += 20
            yield body[start : start + 20]

    async def ask(content) -> tuple[int, str]:
        async with stand.client() as client:
            answer = await client.post("/v1/write", content=content)
            return answer.status_code, answer.text if answer.status_code == 200 else error_of(answer)["code"]

    assert asyncio.run(ask(fits))[0] == asyncio.run(ask(pieces(fits)))[0] == 200
    sent = 0
    assert asyncio.run(ask(over)) == asyncio.run(ask(pieces(over))) == (413, "body_too_large")
    assert sent == 120, "it was read to its end"
    answer = asyncio.run(stand.client().post("/v1/write", content=over))
    assert answer.headers["connection"] == "close"


def test_paths_and_methods_outside_the_api() -> None:
    outside = [("GET", path) for path in ("/v1/nowhere", "/etc/%0apasswd", "/health/")]
    answers = Stand().ask(*outside, ("GET", "/v1/write"), ("PUT", "/health"))
    found = [(a.status_code, error_of(a)["code"]) for a in answers]
    assert found == 3 * [(404, "not_found")] + 2 * [(405, "method_not_allowed")]
    (answer,) = Stand().ask(("POST", "/v1/write", {"crash": True}))
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert error_of(answer)["type"] == "server_error"
