"""A server's life: a real one, with real signals, in this process."""

import asyncio
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="LOUD: the server is not tested; pip install 'lmkit[serve]'")
import httpx
from serve.stand import Stand, error_of

from helpers import ROOT
from lmkit.config import ConfigError
from lmkit.serve import life as module
from lmkit.serve.life import FAILED, _serve, listen

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]


def live(
    stand: Stand, story: Callable[[httpx.AsyncClient, Ask], Awaitable[Any]], verify: Any = True, **tls: str
) -> tuple[int, Any]:
    """The exit status of a server, and what the story, which may end it, returns."""

    async def run() -> tuple[int, Any]:
        listening = listen("127.0.0.1", 0)
        url = f"http{'s' * bool(tls)}://127.0.0.1:{listening.getsockname()[1]}"
        settings = {"log_config": None, "log_level": "critical", "timeout_graceful_shutdown": 2, **tls}
        server = asyncio.create_task(_serve(stand.app, stand.guard.life, listening, settings))
        async with httpx.AsyncClient(base_url=url, timeout=20, verify=verify) as client:
            told = await story(client, lambda **body: client.post("/v1/write", json=body))
        return await asyncio.wait_for(server, 20), told

    return asyncio.run(run())


async def until(stand: Stand, in_hand: int) -> None:
    while len(stand.guard.life.in_hand) != in_hand:
        await asyncio.sleep(0.01)


def test_sigterm_lets_those_in_hand_finish_and_refuses_new_ones(capsys: pytest.CaptureFixture) -> None:
    stand = Stand(drain_sec=20)

    async def story(client: httpx.AsyncClient, ask: Ask) -> list[httpx.Response]:
        assert (await client.get("/ready")).status_code == 200
        asked = [asyncio.create_task(ask(new=20, sleep=0.04, stream=stream)) for stream in (True, False)]
        await until(stand, 2)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)
        for answer in (await client.get("/ready"), await ask(new=1)):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
            assert error_of(answer)["code"] == "draining"
        assert (await client.get("/health")).status_code == 200  # or it would be killed before it has finished
        assert (await client.get("/metrics")).status_code == 200
        return await asyncio.gather(*asked)

    status, (stream, whole) = live(stand, story)
    assert status == 0
    assert stream.text.count("data:") == 20
    assert whole.json() == {"new": 20}
    assert "SIGTERM: 2 requests in hand finish" in capsys.readouterr().err


def test_what_does_not_finish_in_time_is_told(capsys: pytest.CaptureFixture) -> None:
    stand = Stand(drain_sec=0.2)

    async def story(client: httpx.AsyncClient, ask: Ask) -> list[httpx.Response]:
        asked = [asyncio.create_task(ask(new=1000, sleep=0.04, stream=stream)) for stream in (True, False)]
        await until(stand, 2)
        os.kill(os.getpid(), signal.SIGINT)
        return await asyncio.gather(*asked)

    status, (stream, whole) = live(stand, story)
    assert status == 0
    assert (whole.status_code, error_of(whole)["code"]) == (503, "draining")
    assert stream.status_code == 200
    *begun, last = stream.text.strip().split("\n\n")
    assert len(begun) > 1
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
    assert stand.cancelled == 2, "a handler was not cancelled: its slot would leak"
    assert "2 requests did not end within serve.drain_sec=0.2" in capsys.readouterr().err


def test_a_failed_engine_is_told_and_ends_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(module, "TELL_SEC", 0.3)
    stand = Stand()

    async def story(client: httpx.AsyncClient, ask: Ask) -> tuple[httpx.Response, ...]:
        hangs = asyncio.create_task(ask(new=1000, sleep=0.1))  # a handler whose engine is silent
        await until(stand, 1)
        stand.stats = stand.stats._replace(failure="out of memory")
        return await client.get("/health"), await client.get("/ready"), await ask(new=1), await hangs

    status, answers = live(stand, story)
    assert status == FAILED
    assert status not in (0, 1, 2)
    for answer in answers:
        assert (answer.status_code, error_of(answer)["code"]) == (500, "engine_failed")
        assert "out of memory" in error_of(answer)["message"]
    assert stand.cancelled == 1
    assert f"out of memory; the server ends with status {FAILED}" in capsys.readouterr().err


def test_a_reload_goes_on_beside_requests_and_a_bad_one_changes_nothing(capsys: pytest.CaptureFixture) -> None:
    may, calls = threading.Event(), []

    def reload() -> str:
        calls.append(threading.current_thread() is threading.main_thread())
        may.wait(10)
        if len(calls) > 2:
            raise ValueError("step 9 is damaged")
        return "step 7 -> 8"

    stand = Stand(reload=reload)

    async def story(client: httpx.AsyncClient, ask: Ask) -> httpx.Response:
        asked = asyncio.create_task(ask(new=10, sleep=0.02))
        await until(stand, 1)
        first = asyncio.create_task(client.post("/admin/reload"))
        await until(stand, 2)
        twice = await client.post("/admin/reload")
        assert (twice.status_code, error_of(twice)["code"]) == (409, "reloading")
        assert (await ask(new=1)).status_code == 200  # nobody waits for it
        may.set()
        assert (await first).json() == {"status": "step 7 -> 8"}
        os.kill(os.getpid(), signal.SIGHUP)
        while len(calls) < 2 or not stand.guard.life._loading.done():  # type: ignore[union-attr]
            await asyncio.sleep(0.01)
        bad = await client.post("/admin/reload")
        assert (bad.status_code, error_of(bad)["code"]) == (500, "reload_failed")
        assert "step 9 is damaged" in error_of(bad)["message"]
        assert (await client.get("/admin/reload")).status_code == 405
        assert (await client.get("/ready")).status_code == 200
        answer = await asked
        os.kill(os.getpid(), signal.SIGTERM)
        return answer

    status, answer = live(stand, story)
    assert (status, answer.json()) == (0, {"new": 10})
    assert not any(calls), "it ran on the event loop's thread"
    said = capsys.readouterr().err
    assert said.count("reload: step 7 -> 8") == 2
    assert "the parameters stay as they were: ValueError: step 9 is damaged" in said


def test_it_is_not_ready_before_it_says_so() -> None:
    stand = Stand()
    stand.guard.life.state = "starting"
    answers = stand.ask(("GET", "/ready"), ("POST", "/v1/write", {}), ("GET", "/health"), ("POST", "/admin/reload"))
    assert [a.status_code for a in answers] == [503, 503, 200, 503]
    assert error_of(answers[0])["code"] == "starting"
    stand.guard.life.ready()
    assert stand.ask(("GET", "/ready"))[0].status_code == 200
    (answer,) = stand.ask(("POST", "/admin/reload"))
    assert (answer.status_code, error_of(answer)["code"]) == (400, "no_reload")
    stand.guard.life.state = "draining"
    stand.guard.life.ready()  # a compilation that ends late
    assert stand.ask(("GET", "/ready"))[0].status_code == 503


def test_a_request_that_takes_too_long_is_ended() -> None:
    stand = Stand(timeout_sec=0.15)
    whole, stream, quick = stand.ask(
        ("POST", "/v1/write", {"new": 50, "sleep": 0.02}),
        ("POST", "/v1/write", {"new": 50, "sleep": 0.02, "stream": True}),
        ("POST", "/v1/write", {"new": 2, "sleep": 0.001}),
    )
    assert (whole.status_code, error_of(whole)["code"]) == (504, "timeout")
    assert "serve.request_timeout_sec=0.15" in error_of(whole)["message"]
    assert stream.status_code == 200
    last = stream.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert quick.status_code == 200
    assert stand.cancelled == 2
    assert not stand.guard.life.in_hand

    async def slowly() -> int:
        async def body():
            yield b'{"new":'
            await asyncio.sleep(5)

        async with stand.client() as client:
            return (await client.post("/v1/write", content=body())).status_code

    assert asyncio.run(slowly()) == 504  # a body that never comes


@pytest.mark.skipif(shutil.which("openssl") is None, reason="LOUD: no openssl here: TLS was not tested")
def test_tls_by_a_certificate_and_its_key(tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 2"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    stand, cert = Stand(), str(tmp_path / "cert.pem")

    async def story(client: httpx.AsyncClient, ask: Ask) -> httpx.Response:
        answer = await ask(new=3, stream=True)
        async with httpx.AsyncClient(base_url=str(client.base_url).replace("https", "http")) as plain:
            with pytest.raises(httpx.HTTPError):
                await plain.get("/health")
        os.kill(os.getpid(), signal.SIGTERM)
        return answer

    verify = ssl.create_default_context(cafile=cert)
    status, answer = live(stand, story, verify, ssl_certfile=cert, ssl_keyfile=str(tmp_path / "key.pem"))
    assert (status, answer.text.count("data:")) == (0, 3)


def test_a_port_that_is_taken_is_one_line_before_a_model_is_loaded() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"serve\.port={port}: .*in use.*; take another, such as {port + 1}"):
            listen("127.0.0.1", port)


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    code = """
        import os, signal, sys, threading, time
        from serve.stand import Stand
        from lmkit.serve.life import listen, run_server
        stand = Stand(drain_sec=60)
        listening = listen("127.0.0.1", 0)
        def story():
            import httpx
            port = listening.getsockname()[1]
            threading.Thread(target=lambda: httpx.post(f"http://127.0.0.1:{port}/v1/write", json={"new": 1000,
                "sleep": 1}, timeout=60), daemon=True).start()
            while not stand.guard.life.in_hand: time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            while stand.guard.life.state != "draining": time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)  # a wrapper's own: it counts once
            time.sleep(1.1)
            print("still here", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=story, daemon=True).start()
        sys.exit(run_server(stand.app, stand.guard.life, listening))
    """
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "still here" in done.stderr
    assert "a second SIGTERM: the server ends at once" in done.stderr
