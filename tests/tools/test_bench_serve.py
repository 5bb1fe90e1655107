"""The load script: its arithmetic, and what it makes of a server whose times are known."""

import asyncio
import itertools
import json
import math
import random
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="LOUD: the load script is not tested; pip install 'lmkit[serve]'")
import bench_serve
from bench_serve import Answer, arrivals, drawn, main, percentile, spread, summary
from serve.stand import Served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

FIRST, BETWEEN = 0.06, 0.02


class Model:
    """Says its first token after FIRST, the others BETWEEN apart; one request in `refuses` is answered 429."""

    def __init__(self, refuses: int = 0, usage: bool = True, stalls: float = 0.0):
        self.refuses, self.usage, self.stalls = refuses, usage, stalls
        self.asked: list[dict] = []
        paths = ("/v1/completions", "/v1/chat/completions")
        routes = [Route("/v1/models", self.models), *(Route(path, self.answer, methods=["POST"]) for path in paths)]
        self.app = Starlette(routes=routes)
        self.at_a_time = self.most = 0

    async def models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": "mine"}]})

    async def answer(self, request: Request) -> Response:
        self.asked.append(asked := await request.json())
        if self.refuses and len(self.asked) % self.refuses == 0:
            return JSONResponse({"error": {}}, 429)
        return StreamingResponse(self.stream(asked, "messages" in asked), media_type="text/event-stream")

    async def stream(self, asked: dict, chat: bool) -> AsyncIterator[str]:
        self.at_a_time += 1
        self.most = max(self.most, self.at_a_time)
        if chat:  # begins with the role, which is no token
            yield 'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
        await asyncio.sleep(FIRST)
        for number in range(asked["max_tokens"]):
            await asyncio.sleep(BETWEEN if number else 0)
            choice = {"delta": {"content": "a"}} if chat else {"text": "a"}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        if self.usage:
            usage = {"prompt_tokens": 7, "completion_tokens": 2 * asked["max_tokens"]}  # of two tokens a piece
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"
        self.at_a_time -= 1


def measured(model: Model, folder: Path, *words: str) -> dict:
    with Served(model.app) as url:
        main([url, "--out", str(folder), "--prompt-words", "3", "6", *words])
    return json.loads((folder / "results.json").read_text())


def test_percentiles_are_values_that_occurred() -> None:
    hundred = [float(n) for n in range(1, 101)]
    assert [percentile(hundred, p) for p in (50, 90, 99, 99.9, 100)] == [50, 90, 99, 100, 100]
    thousand = [float(n) for n in range(1, 1001)]
    assert [percentile(thousand, p) for p in (50, 90, 99, 99.9, 100)] == [500, 900, 990, 999, 1000]
    assert [percentile([7.0], p) for p in (50, 99.9)] == [7, 7]
    assert percentile([], 50) is None
    found = spread([3.0, 1.0, 2.0])
    assert (found["count"], found["mean"], found["p50"], found["p100"]) == (3, 2.0, 2.0, 3.0)


def test_arrivals_are_a_poisson_process() -> None:
    times = list(arrivals(random.Random(0), 50.0, 200.0))
    assert times == sorted(times)
    assert times[-1] < 200
    assert abs(len(times) - 10_000) < 4 * math.sqrt(10_000)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.04)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.06)  # exponential: as much as the mean
    assert sum(gap > 3 / 50 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-3), rel=0.15)
    counts = [sum(second <= t < second + 1 for t in times) for second in range(200)]
    assert statistics.variance(counts) == pytest.approx(statistics.mean(counts), rel=0.3)


def test_lengths_fill_their_range_on_a_logarithmic_scale() -> None:
    rng = random.Random(0)
    found = [drawn(rng, 8, 128) for _ in range(4000)]
    assert (min(found), max(found)) == (8, 128)
    assert statistics.median(found) == pytest.approx(math.sqrt(8 * 128), rel=0.06)
    assert {drawn(rng, 5, 5) for _ in range(50)} == {5}


def test_a_summary_counts_what_was_answered() -> None:
    answers = [
        Answer("ok", 0.1, [0.2, 0.4], 0.7, 3, 10),
        Answer("ok", 0.3, [], 0.3, 1, 20),
        Answer("429"),
        Answer("429"),
    ]
    found = summary(answers, 100.0, 102.0)
    assert found["outcomes"] == {"ok": 2, "429": 2}
    assert (found["requests"], found["tokens"], found["prompt_tokens"]) == (4, 4, 30)
    assert (found["requests_per_sec"], found["tokens_per_sec"]) == (1.0, 2.0)
    assert [found[kind]["count"] for kind in ("first", "between", "whole")] == [2, 2, 2]
    assert [found[kind]["p100"] for kind in ("first", "between", "whole")] == [0.3, 0.4, 0.7]


def test_an_open_loop_against_times_that_are_known(tmp_path: Path) -> None:
    model = Model(refuses=5)
    result = measured(model, tmp_path, "--rates", "20", "40", "--seconds", "1.5", "--max-tokens", "3", "6", "--chat")
    assert result["model"] == "mine"
    assert [level["rate"] for level in result["levels"]] == [20, 40]
    sent = model.asked[1:]  # without the first, which is not measured
    assert len(sent) == sum(level["requests"] for level in result["levels"])
    assert all(body["messages"][0]["role"] == "user" for body in sent)
    assert len({body["messages"][0]["content"] for body in sent}) == len(sent)
    assert all(3 <= body["max_tokens"] <= 6 for body in sent)
    for level in result["levels"]:
        assert level["outcomes"].keys() == {"ok", "429"}
        assert level["outcomes"]["429"] == pytest.approx(level["requests"] / 5, abs=2)
        assert FIRST <= level["first"]["p50"] < FIRST + 0.2
        assert BETWEEN * 0.5 < level["between"]["p50"] < BETWEEN + 0.1
        assert level["whole"]["p50"] > FIRST + 2 * BETWEEN
        assert level["first"]["count"] == level["whole"]["count"] == level["outcomes"]["ok"]
        assert level["between"]["count"] == level["tokens"] / 2 - level["outcomes"]["ok"]
        assert level["prompt_tokens"] == 7 * level["outcomes"]["ok"]
        assert level["tokens_per_sec"] == pytest.approx(level["tokens"] / level["seconds"])
    html = (tmp_path / "index.html").read_text()
    assert html.count("<svg") == 3
    assert "20 requests/s" in html
    assert "p99.9, ms" in html
    again = list(arrivals(random.Random("0 20.0"), 20.0, 1.5))
    assert result["levels"][0]["requests"] == len(again), "the same seed asks at the same times"


def test_a_closed_loop_has_so_many_requests_at_a_time(tmp_path: Path) -> None:
    model = Model(usage=False)
    words = ["--clients", "1", "4", "--seconds", "0.8", "--max-tokens", "2", "2", "--body", '{"temperature": 0}']
    one, four = measured(model, tmp_path, *words)["levels"]
    assert model.most == 4
    assert (one["clients"], four["clients"]) == (1, 4)
    assert four["requests"] > 2 * one["requests"]
    assert one["tokens"] == 2 * one["requests"]  # pieces, where the server says no usage
    assert one["requests"] <= 0.8 / (FIRST + BETWEEN) + 1
    assert {body["temperature"] for body in model.asked} == {0}
    assert all(isinstance(body["prompt"], str) for body in model.asked)


def test_a_stall_counts_for_those_who_would_have_come_meanwhile() -> None:
    """A server that stands still for 0.5 s: half of the requests wait, not one."""

    class Stalled(bench_serve.Load):
        async def ask(self, body: dict, due: float) -> Answer:
            loop = asyncio.get_running_loop()
            if not hasattr(self, "until"):
                self.until = loop.time() + 0.5
                bench_serve.time.sleep(0.5)  # the client's own loop stands still: nothing is sent
            return Answer("ok", whole=bench_serve.time.perf_counter() - due)

    load = Stalled(None, False, "m", (1, 1), (1, 1), {})  # type: ignore[arg-type]
    found = asyncio.run(bench_serve.open_loop(load, 100.0, 1.0, 0))
    assert found["whole"]["p50"] < 0.25
    assert found["whole"]["p90"] > 0.3
    assert found["client_late_sec"] > 0.4


def test_a_server_that_answers_otherwise_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match='answers 429 to the first request: {"error"'):
        measured(Model(refuses=1), tmp_path)
    with pytest.raises(SystemExit):
        main(["http://localhost:1", "--rates", "0"])
