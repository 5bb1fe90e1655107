"""Figures of the server: /metrics for Prometheus, /figures for the page.

Labels have few values: route templates, HTTP statuses, kinds of ends. No label has a path, an owner or a text that a
client chose, so no client can make the server remember ever more.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as Counts
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lmkit.decode.request import EngineStats
from lmkit.serve.call import Call, call_of

ENDS = ("end", "length", "cancelled", "error")
RECENT = 512  # values that the quantiles of /figures are of
# Seconds. Ratios of about 2: a quantile read from them is right to a factor of 2, /figures has exact ones.
FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
WHOLE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_GAUGES = {
    "slots": "places for requests in the batch", "running": "requests that are being written",
    "waiting": "requests that wait for a slot", "cached_bytes": "bytes of prefixes that are kept",
}  # fmt: skip
_COUNTERS = {
    "requests": "requests taken by the engine", "prompt_tokens": "tokens of their prompts",
    "cached_tokens": "of these, tokens that were not computed again", "new_tokens": "tokens written",
    "steps": "decoding steps", "chunks": "pieces of prompts", "preemptions": "requests put back into the queue",
    "compilations": "programs compiled after the server was ready; 0 unless something is wrong",
}  # fmt: skip


class _Engine(Collector):
    """Where the engine stands, asked at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats], lost: Callable[[], int]):
        self._stats, self._lost = stats, lost

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        for name, about in _GAUGES.items():
            yield GaugeMetricFamily(f"lmkit_{name}", about, value=getattr(stats, name))
        for name, about in _COUNTERS.items():
            yield CounterMetricFamily(f"lmkit_{name}", about, value=getattr(stats, name))
        ended = CounterMetricFamily("lmkit_ended", "requests by how they ended", labels=["reason"])
        other = sum(n for reason, n in stats.ended.items() if reason not in ENDS)
        for reason, n in [*((reason, stats.ended.get(reason, 0)) for reason in ENDS), ("other", other)]:
            ended.add_metric([reason], n)
        yield ended
        yield GaugeMetricFamily("lmkit_failed", "1 when the engine has failed", value=float(bool(stats.failure)))
        yield CounterMetricFamily("lmkit_access_log_lost", "lines that could not be written", value=self._lost())


class Metrics:
    """Counts requests, and answers /metrics and /figures.

    Args:
        stats: of the engine, at this moment; from any thread.
        lost: lines that the access log has lost.
    """

    def __init__(self, stats: Callable[[], EngineStats], lost: Callable[[], int] = lambda: 0):
        self._stats = stats
        self.registry = CollectorRegistry()
        self.registry.register(_Engine(stats, lost))
        labels = ["route", "status"]
        self._calls = Counts("lmkit_http_requests", "answers, by route and HTTP status", labels, registry=self.registry)
        about = "seconds from a request's arrival to "
        self._first = Histogram(
            "lmkit_time_to_first_token_seconds", f"{about}its first token", buckets=FIRST, registry=self.registry
        )
        self._between = Histogram(
            "lmkit_time_between_tokens_seconds",
            "seconds between two tokens of a text",
            buckets=BETWEEN,
            registry=self.registry,
        )
        self._whole = Histogram(
            "lmkit_request_seconds", f"{about}the end of its answer", buckets=WHOLE, registry=self.registry
        )
        self._recent = {
            name: deque[float](maxlen=RECENT) for name in ("first_token_sec", "between_tokens_sec", "request_sec")
        }
        self._owners: dict[str, Counter[str]] = {}
        self.routes = [Route("/metrics", self._scrape), Route("/figures", self._figures)]

    def on_token(self, call: Call, gap: float | None) -> None:
        """At each token; see Call."""
        if gap is not None:
            self._between.observe(gap)
            self._recent["between_tokens_sec"].append(gap)
        elif call.new_tokens == 1 and call.first_sec is not None:
            self._first.observe(call.first_sec)
            self._recent["first_token_sec"].append(call.first_sec)

    def ended(self, call: Call) -> None:
        """At the end of each request."""
        self._calls.labels(call.route or "other", str(call.status)).inc()
        if call.route.startswith("/v1/") and call.method == "POST":
            self._whole.observe(call.seconds)
            self._recent["request_sec"].append(call.seconds)
            if call.status and call.status < 400:
                own = self._owners.setdefault(call.owner, Counter())
                own.update(requests=1, prompt_tokens=call.prompt_tokens, new_tokens=call.new_tokens)

    def figures(self, owner: str, everybody: bool) -> dict[str, Any]:
        """What the page shows; of all owners only with `everybody`."""
        stats = self._stats()
        shown = {name: getattr(stats, name) for name in (*_GAUGES, *_COUNTERS, "failure")}
        owners = self._owners if everybody else {owner: self._owners.get(owner, Counter())}
        quantiles = {name: dict(_quantiles(list(values))) for name, values in self._recent.items()}
        return {"time": time.time(), **shown, **quantiles, "owners": {name: dict(own) for name, own in owners.items()}}

    async def _figures(self, request: Request) -> Response:
        call = call_of(request.scope)
        return JSONResponse(self.figures(call.owner, call.role == "admin"), headers={"cache-control": "no-store"})

    async def _scrape(self, request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self.registry), headers={"content-type": kind})


def _quantiles(values: list[float]) -> Iterator[tuple[str, float]]:
    """The smallest value that so many percent do not exceed; nothing of nothing."""
    values.sort()
    for percent in (50, 90, 99) if values else ():
        yield f"p{percent}", values[math.ceil(percent / 100 * len(values)) - 1]
