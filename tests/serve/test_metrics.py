"""Figures for Prometheus and for the page."""

import pytest

pytest.importorskip("starlette", reason="LOUD: the server is not tested; pip install 'lmkit[serve]'")
from prometheus_client.parser import text_string_to_metric_families
from serve.stand import Stand

from lmkit.decode.request import EngineStats
from lmkit.serve.call import Call
from lmkit.serve.metrics import Metrics


def scraped(stand: Stand) -> dict[tuple, float]:
    (answer,) = stand.ask(("GET", "/metrics"))
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in families
        for s in family.samples
        if not s.name.endswith("_created")
    }


def test_what_the_engine_says() -> None:
    stand = Stand()
    stand.stats = EngineStats(
        slots=8, running=3, waiting=2, requests=100, ended={"end": 60, "error": 1, "a new reason": 4, "another": 5},
        prompt_tokens=5000, cached_tokens=700, new_tokens=900, steps=80, chunks=70, preemptions=6, compilations=1,
        cached_bytes=4096,
    )  # fmt: skip
    found = scraped(stand)
    gauges = {"slots": 8, "running": 3, "waiting": 2, "cached_bytes": 4096, "failed": 0}
    counters = {"requests": 100, "prompt_tokens": 5000, "cached_tokens": 700, "new_tokens": 900, "steps": 80}
    counters |= {"chunks": 70, "preemptions": 6, "compilations": 1}
    assert {name: found[f"lmkit_{name}",] for name in gauges} == gauges
    assert {name: found[f"lmkit_{name}_total",] for name in counters} == counters
    ended = {reason: found["lmkit_ended_total", reason] for reason in ("end", "length", "cancelled", "error", "other")}
    assert ended == {"end": 60, "length": 0, "cancelled": 0, "error": 1, "other": 9}
    stand.stats = stand.stats._replace(failure="out of memory")
    assert scraped(stand)["lmkit_failed",] == 1


def test_requests_and_tokens_are_counted() -> None:
    stand = Stand()
    stand.ask(("POST", "/v1/write", {"new": 4, "sleep": 0.03}), ("POST", "/v1/write", {"new": 1, "stream": True}))
    stand.ask(("POST", "/v1/write", {"crash": True}), ("GET", "/v1/models/a"), ("GET", "/v1/models/b"))
    found = scraped(stand)
    counts = {key[1:]: n for key, n in found.items() if key[0] == "lmkit_http_requests_total"}
    assert counts == {("/v1/write", "200"): 2, ("/v1/write", "500"): 1, ("/v1/models/{name}", "200"): 2}
    assert found["lmkit_time_to_first_token_seconds_count",] == 2
    assert found["lmkit_time_between_tokens_seconds_count",] == 3
    assert found["lmkit_time_between_tokens_seconds_bucket", "0.025"] == 0
    assert 0.09 <= found["lmkit_time_between_tokens_seconds_sum",] < 3
    assert found["lmkit_request_seconds_count",] == 3


def test_no_client_can_make_more_series() -> None:
    stand = Stand()
    stand.ask(("GET", "/nowhere"), ("POST", "/v1/write", {}))
    series = set(scraped(stand))
    stand.ask(*[("GET", f"/nowhere/{n}") for n in range(50)])
    found = scraped(stand)
    assert set(found) - series == {("lmkit_http_requests_total", "/metrics", "200")}
    assert found["lmkit_http_requests_total", "404", "other"] == 51


def test_texts_of_one_request_are_timed_apart() -> None:
    metrics, gaps, call = Metrics(EngineStats), [], Call("POST", "")
    call.on_token = lambda call, gap: (gaps.append(gap), metrics.on_token(call, gap))[0]
    for number, choice in enumerate((0, 1, 2, 0, 1, 2)):
        call.token(choice, call.started + number)  # when the engine wrote it, not when it was read
    assert gaps == [None, None, None, 3.0, 3.0, 3.0]
    assert call.new_tokens == 6
    assert metrics.registry.get_sample_value("lmkit_time_to_first_token_seconds_count") == 1
    assert metrics.registry.get_sample_value("lmkit_time_between_tokens_seconds_count") == 3


def test_figures_have_quantiles_of_what_was_last() -> None:
    metrics = Metrics(lambda: EngineStats(slots=2, new_tokens=5))
    assert metrics.figures("", True)["first_token_sec"] == {}
    for n in range(1000):
        call = Call("POST", "", first_sec=n / 1000, new_tokens=1)
        metrics.on_token(call, None)
    figures = metrics.figures("", True)
    assert figures["first_token_sec"] == {"p50": 0.743, "p90": 0.948, "p99": 0.994}  # of the last 512
    assert (figures["slots"], figures["new_tokens"]) == (2, 5)


def test_metrics_may_be_left_out() -> None:
    answers = Stand(metrics=False, page=False).ask(("GET", "/metrics"), ("GET", "/"), ("GET", "/figures"))
    assert [a.status_code for a in answers] == [404, 404, 200]
