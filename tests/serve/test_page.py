"""The page at /, in a browser, against a server whose model is pretended."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="LOUD: the server is not tested; pip install 'lmkit[serve]'")
from serve.browser import CHROMIUM, Browser
from serve.stand import Served, Stand
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from lmkit.serve.call import Call, call_of
from lmkit.serve.keys import create_key
from lmkit.serve.page import page_html
from lmkit.serve.refusal import HANDLERS, Refused

EVIL = "</script><img src=https://a.bc onerror='document.title=1'>"
WORDS = ["Four", ",", " <b>of", " course", "\n", "é"]


class Model(Stand):
    """Answers as OpenAI's API does; `asked` has the bodies."""

    def __init__(self, **settings):
        super().__init__(name=EVIL, **settings)
        self.asked: list[dict] = []
        paths = ("/v1/chat/completions", "/v1/completions")
        routes = [Route(path, self.answer, methods=["POST"]) for path in paths]
        self.app = self.guard.around(Starlette(routes=[*routes, *self.guard.routes], exception_handlers=HANDLERS))

    async def answer(self, request: Request) -> Response:
        asked = await request.json()
        self.asked.append(asked)
        if asked.get("seed") == 13:
            raise Refused(400, "seed=13 brings bad luck", param="seed")
        chat = request.url.path.endswith("chat/completions")
        return StreamingResponse(self.chunks(asked, chat, call_of(request.scope)), media_type="text/event-stream")

    async def chunks(self, asked: dict, chat: bool, call: Call) -> AsyncIterator[str]:
        for number, word in enumerate(WORDS):
            choice: dict = {"index": 0, "finish_reason": None}
            choice |= {"delta": {"content": word}} if chat else {"text": word}
            logprob, others = -0.1 * number, [[" <other>", -3.0]]
            if asked.get("logprobs") and chat:
                top = [{"token": token, "logprob": p} for token, p in [[word, logprob], *others]]
                choice["logprobs"] = {"content": [{"token": word, "logprob": logprob, "top_logprobs": top}]}
            elif asked.get("logprobs"):
                found = {
                    "tokens": [word],
                    "token_logprobs": [logprob],
                    "top_logprobs": [{word: logprob} | dict(others)],
                }
                choice["logprobs"] = found
            call.token()
            self.stats = self.stats._replace(new_tokens=self.stats.new_tokens + 1)
            yield f"data: {json.dumps({'choices': [choice]})}\r\n\r\n"
            await asyncio.sleep(3600 if asked.get("stop") == "never" else 0.005)
        end = {"index": 0, "finish_reason": "stop", **({"delta": {}} if chat else {"text": ""})}
        yield f"data: {json.dumps({'choices': [end]})}\n\ndata: [DONE]\n\n"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("chromium is not on PATH")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def send(browser: Browser, **fields: str | bool) -> None:
    browser.fill(**fields)
    browser.run("document.getElementById('send').click()")


def texts(browser: Browser) -> list[str]:
    return browser.run("[...document.querySelectorAll('#turns pre')].map(e => e.textContent)")


DONE = "!document.getElementById('send').disabled && document.querySelectorAll('#turns pre').length"


def test_a_chat_a_completion_and_how_likely_their_tokens_were(browser: Browser, tmp_path: Path) -> None:
    model = Model()
    with Served(model.app) as url:
        browser.asked.clear()
        browser.console.clear()
        browser("Page.navigate", url=url)
        assert browser.until("document.body?.className") == "live"
        assert browser.run("document.title") == EVIL
        send(browser, prompt="2+2?", system="Be brief.", logprobs=True, temperature="0", stop_at="\\nX")
        browser.until(f"{DONE} == 2")
        assert texts(browser) == ["2+2?", "".join(WORDS)]
        assert model.asked[0]["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2+2?"},
        ]
        options = {"temperature": 0, "logprobs": True, "top_logprobs": 5, "stop": "\nX", "stream": True, "model": EVIL}
        assert {name: model.asked[0][name] for name in options} == options
        assert not {"top_p", "min_p", "seed"} & set(model.asked[0]), "what was left empty is the server's choice"
        assert "6 pieces" in browser.run("document.getElementById('took').textContent")
        browser.run(
            "document.querySelectorAll('.token')[2].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
        )
        tip = browser.run("document.getElementById('tip').textContent").splitlines()
        assert [line.split(maxsplit=2) for line in tip] == [["81.9", "%", '" <b>of"'], ["5.0", "%", '" <other>"']]
        send(browser, prompt="And then?")
        browser.until(f"{DONE} == 4")
        assert [turn["role"] for turn in model.asked[1]["messages"]] == ["system", "user", "assistant", "user"]
        send(browser, mode="completion", prompt="Once", logprobs=False, system="")
        browser.until(f"{DONE} == 5")
        assert texts(browser)[-1] == "Once" + "".join(WORDS)
        assert "messages" not in model.asked[2]
        assert model.asked[2]["prompt"] == "Once"
        assert "logprobs" not in model.asked[2]
        browser.until("document.getElementById('tokens').textContent == '18 so far'")
        assert browser.run("document.getElementById('state').textContent") == "ready"
        assert browser.run("document.getElementById('slots').textContent") == "of 4 slots"
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000
        assert {address.split("/")[2] for address in browser.asked if "://" in address} == {url.split("/")[2]}
        assert browser.console == []


def test_errors_are_shown_and_an_answer_can_be_stopped(browser: Browser) -> None:
    model = Model()
    with Served(model.app) as url:
        browser("Page.navigate", url=url)
        browser.until("document.body?.className == 'live'")
        send(browser, prompt="Hm", seed="13")
        assert browser.until("document.getElementById('error').textContent") == "seed=13 brings bad luck"
        assert browser.run("document.getElementById('prompt').value") == "Hm", "what was written is lost"
        assert texts(browser) == ["Hm"]
        send(browser, seed="")
        browser.until(f"{DONE} && document.getElementById('took').textContent")
        assert model.asked[1]["messages"] == [{"role": "user", "content": "Hm"}], "what failed is in the conversation"
        browser.run("document.getElementById('clear').click()")
        send(browser, prompt="Hm", seed="", stop_at="never")
        browser.until("document.querySelectorAll('#turns pre')[1]?.textContent == 'Four'")
        browser.run("document.getElementById('stop').click()")
        assert "stopped" in browser.until("document.getElementById('took').textContent")
        assert texts(browser) == ["Hm", "Four"]


def test_a_key_is_asked_for_and_kept_nowhere(browser: Browser, tmp_path: Path) -> None:
    secret = create_key(tmp_path / "keys.yaml", "alice")
    model = Model(keys=tmp_path / "keys.yaml")
    with Served(model.app) as url:
        browser("Page.navigate", url=url)
        browser.until("document.getElementById('state')?.textContent == 'a key is needed'")
        assert browser.run("!document.getElementById('ask').hidden")
        send(browser, prompt="Hm")
        assert "API key is missing" in browser.until("document.getElementById('error').textContent")
        send(browser, prompt="Hm", key=secret)
        browser.until(f"{DONE} && document.getElementById('took').textContent")
        assert texts(browser)[-1] == "".join(WORDS)
        browser.until("document.getElementById('state').textContent == 'ready'")
        assert "alice" in browser.run("document.getElementById('owners').textContent")
        kept = browser.run("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert "sk-" not in kept
        browser("Page.reload")
        browser.until("document.getElementById('state')?.textContent == 'a key is needed'")


def test_it_needs_nothing_from_outside() -> None:
    (answer,) = Stand(name=EVIL).ask(("GET", "/"))
    assert "text/html" in answer.headers["content-type"]
    policy = answer.headers["content-security-policy"]
    for part in ("default-src 'none'", "connect-src 'self'", "script-src 'sha256-", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe-inline" not in policy.replace("style-src 'unsafe-inline'", "")
    assert answer.headers["x-content-type-options"] == "nosniff"
    html = page_html("model")
    assert set(re.findall("(?:src|href)=(.*?)[ >]", html)) == {'"data:,"'}
    html = page_html(EVIL)
    assert html.count("<script") == 2
    assert "<img" not in html


def test_it_begins_with_what_the_model_can_do() -> None:
    html = page_html("m", length=64, chat=False)
    assert '{"model": "m", "chat": false, "max_tokens": 32}' in html
    assert '{"model": "m", "chat": true, "max_tokens": 256}' in page_html("m", length=8192)
