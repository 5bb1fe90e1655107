"""Load on a running server that speaks OpenAI's API: percentiles of its latencies, and tokens a second.

    python tools/bench_serve.py http://127.0.0.1:8000 --rates 1 2 4 8     # open loop: requests a second
    python tools/bench_serve.py http://127.0.0.1:8000 --clients 1 16      # closed loop: each asks when it is answered
    OPENAI_API_KEY=sk-... python tools/bench_serve.py https://host --rates 4 --seconds 120 --out bench

Open loop: requests come as a Poisson process, whether or not the server has answered earlier ones, and a latency counts
from the moment at which the request should have been sent. So a server that stalls is charged for all who would have
come meanwhile ("coordinated omission"). Prompts are random words, different in each request and the same in each run of
a seed; lengths of prompts and answers are drawn evenly on a logarithmic scale.

Measured per request: seconds to the first token, between two tokens (pieces of the stream: a server may send several
tokens as one), and to the end. Percentiles are values that occurred (nearest rank), of all values. Refused (429, 503)
and failed requests are counted and are in no latency. Tokens are those that the server's `usage` says, else pieces.

Writes results.json and index.html into --out. Give the client a CPU of its own, or it is measured, too.
"""

import argparse
import asyncio
import collections
import dataclasses
import json
import math
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from speed.records import stamp

from lmkit.pages.chart import NUM_COLORS, compact, escape, exact
from lmkit.pages.page import html_page, table

PERCENTS = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)
SHOWN = (50.0, 90.0, 99.0, 99.9)
REFUSED_SEC = 0.1  # a client that was refused comes again after so long
KINDS = {"first": "time to first token", "between": "time between tokens", "whole": "whole request"}
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en", "is")]


@dataclasses.dataclass
class Answer:
    """What became of one request. Times are seconds from when it was due; `tokens` as the server counts them."""

    outcome: str  # "ok", a status, or a kind of error
    first: float | None = None
    between: list[float] = dataclasses.field(default_factory=list)
    whole: float | None = None
    tokens: int = 0
    prompt_tokens: int = 0
    ended: float = 0.0  # by the clock
    said: str = ""  # by the server, of an error


@dataclasses.dataclass
class Load:
    """Where the requests go and what they ask for."""

    client: httpx.AsyncClient
    chat: bool
    model: str
    prompt_words: tuple[int, int]
    max_tokens: tuple[int, int]
    more: dict[str, Any]

    def body(self, rng: random.Random) -> dict[str, Any]:
        """A request that no other equals."""
        words = " ".join(
            "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(drawn(rng, *self.prompt_words))
        )
        asked = {"messages": [{"role": "user", "content": words}]} if self.chat else {"prompt": words}
        named = {"model": self.model, "stream": True, "stream_options": {"include_usage": True}}
        return {**named, "max_tokens": drawn(rng, *self.max_tokens), **asked, **self.more}

    async def ask(self, body: dict[str, Any], due: float) -> Answer:
        """Sends a request and reads its answer. Never raises what the server or the network did."""
        path, answer, last = "/v1/chat/completions" if self.chat else "/v1/completions", Answer("ok"), None
        try:
            async with self.client.stream("POST", path, json=body) as reply:
                if reply.status_code != 200:
                    answer.outcome, answer.said = str(reply.status_code), (await reply.aread()).decode(errors="replace")
                    return answer
                pieces, usage = 0, {}
                async for event in events(reply):
                    if "error" in event:
                        answer.outcome = "error in the stream"
                        return answer
                    usage = event.get("usage") or usage
                    if not any(_text(choice) for choice in event.get("choices", [])):
                        continue
                    now, pieces = time.perf_counter(), pieces + 1
                    if last is None:
                        answer.first = now - due
                    else:
                        answer.between.append(now - last)
                    last = now
            answer.tokens = usage.get("completion_tokens", pieces)
            answer.prompt_tokens = usage.get("prompt_tokens", 0)
            answer.ended = time.perf_counter()
            answer.whole = answer.ended - due
        except httpx.HTTPError as error:
            answer.outcome = type(error).__name__
        return answer


def _text(choice: dict[str, Any]) -> str:
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""


async def events(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each event, up to [DONE]."""
    async for line in reply.aiter_lines():
        if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
            yield json.loads(data)


def drawn(rng: random.Random, low: int, high: int) -> int:
    """A whole number of low to high, evenly on a logarithmic scale."""
    return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))


def arrivals(rng: random.Random, rate: float, seconds: float) -> Iterator[float]:
    """Seconds at which requests of a Poisson process are due."""
    at = rng.expovariate(rate)
    while at < seconds:
        yield at
        at += rng.expovariate(rate)


async def open_loop(load: Load, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """One rate: all that came in `seconds`, waited for to their ends."""
    rng = random.Random(f"{seed} {rate}")
    due = list(arrivals(rng, rate, seconds))
    bodies = [load.body(rng) for _ in due]  # made before: it is not the server's time
    start, late, asks = time.perf_counter(), 0.0, []
    for at, body in zip(due, bodies, strict=True):
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        late = max(late, time.perf_counter() - start - at)
        asks.append(asyncio.create_task(load.ask(body, start + at)))
    answers = await asyncio.gather(*asks)
    return {"rate": rate, "client_late_sec": late, **summary(answers, start, time.perf_counter())}


async def closed_loop(load: Load, clients: int, seconds: float, seed: int) -> dict[str, Any]:
    """So many clients, each with one request at a time, begun within `seconds`."""
    start, answers = time.perf_counter(), []

    async def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        while (now := time.perf_counter()) < start + seconds:
            answers.append(await load.ask(load.body(rng), now))
            if answers[-1].outcome != "ok":
                await asyncio.sleep(REFUSED_SEC)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return {"clients": clients, **summary(answers, start, time.perf_counter())}


def summary(answers: Sequence[Answer], start: float, end: float) -> dict[str, Any]:
    """Counts, tokens a second and percentiles of what was answered between two times."""
    good = [answer for answer in answers if answer.outcome == "ok"]
    values = {
        "first": [answer.first for answer in good if answer.first is not None],
        "between": [gap for answer in good for gap in answer.between],
        "whole": [answer.whole for answer in good if answer.whole is not None],
    }
    tokens, prompts = sum(answer.tokens for answer in good), sum(answer.prompt_tokens for answer in good)
    return {
        "requests": len(answers),
        "outcomes": dict(collections.Counter(answer.outcome for answer in answers)),
        "seconds": end - start,
        "requests_per_sec": len(good) / (end - start),
        "tokens": tokens,
        "tokens_per_sec": tokens / (end - start),
        "prompt_tokens": prompts,
        **{kind: spread(found) for kind, found in values.items()},
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """How values are spread: their number, mean, and percentiles in seconds."""
    ranked = sorted(values)
    return {
        "count": len(ranked),
        "mean": math.fsum(ranked) / len(ranked) if ranked else None,
        **{f"p{percent:g}": percentile(ranked, percent) for percent in PERCENTS},
    }


def percentile(ranked: Sequence[float], percent: float) -> float | None:
    """The smallest value that `percent` of them do not exceed; of few values the high ones are the largest."""
    if not ranked:
        return None
    return ranked[max(0, math.ceil(round(percent * len(ranked) / 100, 6)) - 1)]


def name_of(level: dict[str, Any]) -> str:
    """The load of a row, in words."""
    if "rate" in level:
        return f"{level['rate']:g} requests/s"
    return f"{level['clients']} client{'s' * (level['clients'] > 1)}"


def curves(kind: str, levels: Sequence[dict[str, Any]]) -> str:
    """Latency by percentile, both on logarithmic scales: the tail has as much room as the rest."""
    lines = [[(percent, level[kind][f"p{percent:g}"]) for percent in PERCENTS[:-1]] for level in levels]
    found = [value for line in lines for _, value in line if value]
    if not found:
        return ""
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)) + 1e-9)
    across = {percent: -math.log10(1 - percent / 100) for percent in PERCENTS[:-1]}
    left, right = min(across.values()), max(across.values())
    x = {percent: 60 + 620 * (place - left) / (right - left) for percent, place in across.items()}

    def y(value: float) -> float:
        return 20 + 220 * (high - math.log10(value)) / max(1, high - low)

    style = 'style="stroke-width:1" vector-effect="non-scaling-stroke"'
    grid = "".join(f'<path class="grid" {style} d="M60 {y(10.0**p):.1f}H680"/>' for p in range(low, high + 1))
    label = '<text font-size="12" fill="currentColor" x="{}" y="{}" text-anchor="{}">{}</text>'
    names = "".join(
        label.format(54, f"{y(10.0**p) + 4:.1f}", "end", f"{compact(10.0**p)} s") for p in range(low, high + 1)
    )
    names += "".join(label.format(f"{x[p]:.1f}", 262, "middle", f"{p:g} %") for p in x)
    paths = "".join(
        f'<path class="c{n % NUM_COLORS}" d="M{"L".join(f"{x[p]:.1f} {y(value):.1f}" for p, value in line if value)}"/>'
        for n, line in enumerate(lines) if any(value for _, value in line)
    )  # fmt: skip
    keys = " ".join(
        f'<span class="key c{n % NUM_COLORS}">{escape(name_of(level))}</span>' for n, level in enumerate(levels)
    )
    title = KINDS[kind].capitalize()
    caption = f'<strong>{title}</strong> <small>seconds by percentile</small> <span class="legend">{keys}</span>'
    svg = f'<svg role="img" aria-label="{title}" viewBox="0 0 700 270" style="height:auto">{grid}{names}{paths}</svg>'
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def page(result: dict[str, Any]) -> str:
    """The picture."""
    levels = result["levels"]
    rows = []
    for level in levels:
        for kind, words in KINDS.items():
            cells = [
                exact(1000 * value) if (value := level[kind][f"p{p:g}"]) is not None else "–" for p in (*SHOWN, 100.0)
            ]
            rows.append((name_of(level), words, f"{level[kind]['count']:,}", *cells))
    counts = []
    for level in levels:
        outcomes = escape(", ".join(f"{n:,} {what}" for what, n in level["outcomes"].items()))
        speeds = exact(level["requests_per_sec"]), exact(level["tokens_per_sec"])
        counts.append((name_of(level), f"{level['requests']:,}", outcomes, *speeds))
    head = ("Load", "", "Values", *(f"p{p:g}, ms" for p in SHOWN), "Largest")
    charts = f'<div class="charts">{"".join(curves(kind, levels) for kind in KINDS)}</div>'
    note = f"{result['url']} · {result['model']} · {result['when']} · {result['machine']} (the client's)"
    return html_page("Load on a server", note, [
        ("Throughput", table(("Load", "Requests", "Outcomes", "Answered a second", "Tokens a second"), counts)),
        ("Latency", charts), ("Percentiles", table(head, rows)),
        ("How it was measured", f"<pre>{escape(' '.join(result['command']))}</pre>"),
    ])  # fmt: skip


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All loads, one after the other."""
    key = os.environ.get("OPENAI_API_KEY", "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=1000)
    async with httpx.AsyncClient(base_url=args.url, headers=headers, limits=limits, timeout=args.timeout) as client:
        model = args.model or (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        load = Load(client, args.chat, model, tuple(args.prompt_words), tuple(args.max_tokens), json.loads(args.body))
        result = {
            "url": args.url,
            "model": model,
            "command": ["bench_serve.py", *sys.argv[1:]],
            "seed": args.seed,
            **stamp(),
        }
        result |= {"prompt_words": args.prompt_words, "max_tokens": args.max_tokens, "chat": args.chat, "levels": []}
        first = await load.ask(load.body(random.Random("first")), time.perf_counter())  # connections, caches
        if first.outcome != "ok":
            raise SystemExit(f"bench_serve: {args.url} answers {first.outcome} to the first request: {first.said:.300}")
        for value in args.clients or args.rates:
            run = closed_loop if args.clients else open_loop
            level = await run(load, value, args.seconds, args.seed)
            result["levels"].append(level)
            print(f"{name_of(level)}: {level['tokens_per_sec']:.1f} tokens/s, {level['outcomes']}")
            for kind, words in KINDS.items():
                print(f"  {words:<21}", *(f"p{p:g} {_ms(level[kind][f'p{p:g}'])}" for p in SHOWN), "ms", flush=True)
    return result


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.1f}"


def main(words: list[str] | None = None) -> None:
    """Measures, prints a line a load, writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    loads = parser.add_mutually_exclusive_group()
    loads.add_argument(
        "--rates", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="requests a second, each in turn"
    )
    loads.add_argument("--clients", type=int, nargs="+", help="clients at a time, each in turn, instead of rates")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of each load; then its last answers are waited for"
    )
    parser.add_argument("--prompt-words", type=int, nargs=2, default=[8, 128], metavar=("LOW", "HIGH"))
    parser.add_argument("--max-tokens", type=int, nargs=2, default=[8, 128], metavar=("LOW", "HIGH"))
    parser.add_argument("--chat", action="store_true", help="/v1/chat/completions instead of /v1/completions")
    parser.add_argument("--model", default="", help="'' = the first of /v1/models")
    parser.add_argument(
        "--body", default="{}", help='more of each request, JSON: {"temperature": 0, "ignore_eos": true}'
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds without a byte")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bench_serve"), help="folder for results.json and index.html")
    args = parser.parse_args(words)
    if min(*(args.clients or args.rates), args.seconds) <= 0 or any(
        low < 1 or high < low for low, high in (args.prompt_words, args.max_tokens)
    ):
        parser.error("rates, clients and seconds are above 0; LOW is 1 or more and not above HIGH")
    result = asyncio.run(measure(args))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "index.html").write_text(page(result))
    print(args.out / "index.html")


if __name__ == "__main__":
    main()
