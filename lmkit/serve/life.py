"""A server's life: starting, ready, draining or failed; signals, a new checkpoint, and how it ends.

| what happens | what clients see | exit status |
|---|---|---|
| SIGTERM, SIGINT | /ready and new requests 503 at once; those in hand finish within drain_sec, the rest 503 | 0 |
| a second one, a second or more later | connections break | 128 + its number |
| SIGHUP, POST /admin/reload | nothing: requests that run end with the parameters they began with | |
| the engine fails | /health 500; those in hand 500, or an error event where the answer had begun | 70 |

70 is EX_SOFTWARE. It is neither 1 nor 2, which stand for mistakes that a restart does not mend: a supervisor
(Kubernetes, systemd with Restart=on-failure, the Slurm job of lmkit.launch) starts the server again.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmkit.config.base import ConfigError
from lmkit.decode.request import EngineStats
from lmkit.serve.refusal import Refused, error_body

FAILED = 70
ANSWERED = frozenset({"/", "/health", "/ready", "/metrics", "/figures"})  # whatever state the server is in
RETRY_SEC = 5.0  # by then another replica, or this one started again, may have room
TELL_SEC = 2.0  # after a failure: for answers that are under way, and for one look at /health
TWICE_SEC = 1.0  # a signal that comes again so soon is the first: a terminal and a wrapper may both have sent it
LOOK_SEC = 0.25  # between two looks at the engine


class Life:
    """The state of a server and its requests in hand.

    Args:
        stats: of the engine; its `failure` ends the server.
        reload: loads a newer checkpoint and returns what it did, in a line; called on a thread, one at a time.
        drain_sec: how long requests in hand may take after SIGTERM.
    """

    def __init__(
        self, stats: Callable[[], EngineStats], reload: Callable[[], str] | None = None, drain_sec: float = 30.0
    ):
        self._stats, self._reload, self._drain_sec = stats, reload, drain_sec
        self._loading: asyncio.Task[str] | None = None
        self._failure = ""
        self.state = "starting"
        self.ending: Refused | None = None  # why what is still in hand is cut off
        self.in_hand: set[asyncio.Timeout] = set()
        self.routes = [
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/admin/reload", self._reloaded, methods=["POST"]),
        ]

    def ready(self) -> None:
        """All programs are compiled: requests are taken from now on. From any thread."""
        if self.state == "starting":
            self.state = "ready"

    def failure(self) -> str:
        """Why the engine does no more, or ''."""
        self._failure = self._failure or self._stats().failure
        if self._failure:
            self.state = "failed"
        return self._failure

    def refusal(self) -> Refused | None:
        """Why a new request is not taken now."""
        if failure := self.failure():
            return _failed(failure)
        if self.state == "ready":
            return None
        return Refused(503, f"the server is {self.state}: come again", self.state, retry_sec=RETRY_SEC)

    def cut(self, reason: Refused) -> None:
        """Ends what is in hand, now, with this error."""
        self.ending = reason
        now = asyncio.get_running_loop().time()
        for limit in self.in_hand:
            if not limit.expired():
                limit.reschedule(now)

    async def finished(self, limit_sec: float) -> bool:
        """Waits until nothing is in hand; False at the limit."""
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_sec
        while self.in_hand and loop.time() < until:
            await asyncio.sleep(0.02)
        return not self.in_hand

    async def drain(self) -> None:
        """Takes no more requests; returns when those in hand have ended, or drain_sec has gone and they were cut."""
        self.state = "draining"
        if not await self.finished(self._drain_sec):
            _say(f"{len(self.in_hand)} requests did not end within serve.drain_sec={self._drain_sec:g} and are cut off")
            message = f"the server ends, and this request did not finish within {self._drain_sec:g} s: send it again"
            self.cut(Refused(503, message, "draining", retry_sec=RETRY_SEC))
            await self.finished(TELL_SEC)

    async def watch(self) -> str:
        """Returns what has made the engine fail, when that has been told to all in hand."""
        starting = self.state == "starting"
        while not (failure := self.failure()):
            starting = self.state == "starting"
            await asyncio.sleep(LOOK_SEC)
        if not starting:  # else what kept the model from being loaded ends the process, with its own line and status
            _say(f"the engine has failed: {failure}; the server ends with status {FAILED}")
        if not await self.finished(TELL_SEC):  # the engine tells its requests; one that hangs does not
            self.cut(_failed(failure))
        await asyncio.sleep(TELL_SEC)
        return failure

    async def reload(self) -> str:
        """Swaps in a newer checkpoint. Raises Refused where there is nothing to reload, or one is under way."""
        if self._reload is None:
            raise Refused(400, "this server has no checkpoint to reload from", "no_reload")
        if self._loading is not None and not self._loading.done():
            raise Refused(409, "a reload is under way", "reloading", retry_sec=RETRY_SEC)
        self._loading = asyncio.create_task(asyncio.to_thread(self._reload))
        try:
            done = await asyncio.shield(self._loading)  # who asked may go: the thread does not end with it
        except Exception as error:
            _say(f"reload failed, the parameters stay as they were: {type(error).__name__}: {error}")
            message = f"the reload failed, and the parameters stay as they were: {error}"
            raise Refused(500, message, "reload_failed") from error
        _say(f"reload: {done}")
        return done

    async def hang_up(self) -> None:
        """SIGHUP: what `reload` refuses is reported on stderr."""
        try:
            await self.reload()
        except Refused as refused:
            if refused.code != "reload_failed":
                _say(f"SIGHUP: {refused.detail}")

    async def _health(self, request: Request) -> Response:
        if failure := self.failure():
            return _failed(failure).response()
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        refusal = self.refusal()
        return refusal.response() if refusal else JSONResponse({"status": "ready"})

    async def _reloaded(self, request: Request) -> Response:
        return JSONResponse({"status": await self.reload()})


def _failed(failure: str) -> Refused:
    return Refused(500, f"the engine has failed: {failure}", "engine_failed")


def _say(text: str) -> None:
    print(f"lmkit.serve: {text}", file=sys.stderr, flush=True)


class Gate:
    """Around an application: takes requests while the server is ready, and ends those that take too long.

    A request that is ended gets 504, or 503 or 500 where the server ends; in a stream of events, where the answer has
    begun, an event with the error. Its handler is cancelled.

    Args:
        limit_sec: for a whole request, its body and its answer; 0 = none.
        answered: paths that are always answered.
    """

    def __init__(self, app: ASGIApp, life: Life, limit_sec: float = 0.0, answered: Collection[str] = ANSWERED):
        self.app, self.life, self.limit_sec, self.answered = app, life, limit_sec, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.answered:
            await self.app(scope, receive, send)
            return
        if refusal := self.life.refusal():
            await refusal.response()(scope, receive, send)
            return
        begun, events, ended = False, False, False

        async def noted(message: Message) -> None:
            nonlocal begun, events, ended
            if message["type"] == "http.response.start":
                begun, kind = True, dict(message["headers"]).get(b"content-type", b"")
                events = kind.startswith(b"text/event-stream")
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        limit = asyncio.timeout(self.limit_sec or None)
        try:
            async with limit:
                self.life.in_hand.add(limit)
                await self.app(scope, receive, noted)
        except TimeoutError:
            if not limit.expired():
                raise
            refused = self.life.ending or _too_long(self.limit_sec)
            if not begun:
                await refused.response()(scope, receive, send)
            elif events and not ended:
                await send({"type": "http.response.body", "body": _event(refused), "more_body": False})
            elif not ended:
                raise  # half an answer that is no stream: the connection breaks, so that nobody takes it for whole
        finally:
            self.life.in_hand.discard(limit)


def _too_long(limit_sec: float) -> Refused:
    message = f"the request took longer than serve.request_timeout_sec={limit_sec:g}: ask for fewer tokens"
    return Refused(504, message, "timeout")


def _event(refused: Refused) -> bytes:
    body = error_body(refused.status_code, refused.detail, refused.code)
    return f"data: {json.dumps(body)}\n\n".encode()


# What has not closed its connection after so many seconds at the end is cut: a client that does not read its answer.
_SETTINGS = {
    "log_config": None, "log_level": "warning", "access_log": False, "server_header": False,
    "timeout_graceful_shutdown": 5,
}  # fmt: skip


class _Server(uvicorn.Server):
    """Signals are Life's: uvicorn's own handlers end the process by the signal, when all is done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket for `run_server`, to be had before a model is loaded for nothing. Raises ConfigError."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"serve.host={host} serve.port={port}: {why}; take another, such as {port + 1}") from error


def run_server(app: ASGIApp, life: Life, listening: socket.socket, **settings: Any) -> int:
    """Serves until a signal, or the engine's failure, ends it; returns the exit status. On the main thread only.

    Args:
        app: all of it; see lmkit.serve.guard.
        settings: of uvicorn.Config: ssl_certfile, ssl_keyfile, ...
    """
    return asyncio.run(_serve(app, life, listening, {**_SETTINGS, **settings}))


async def _serve(app: ASGIApp, life: Life, listening: socket.socket, settings: dict[str, Any]) -> int:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    first = 0.0
    server, tasks = _Server(uvicorn.Config(app, **settings)), set[asyncio.Task]()

    def stop(number: int) -> None:
        nonlocal first
        if asked.is_set() and loop.time() < first + TWICE_SEC:
            return
        if asked.is_set():
            _say(f"a second {signal.Signals(number).name}: the server ends at once")
            os._exit(128 + number)
        first = loop.time()
        asked.set()
        _say(f"{signal.Signals(number).name}: {len(life.in_hand)} requests in hand finish, new ones are refused")

    def hang_up() -> None:
        task = loop.create_task(life.hang_up())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    serving = loop.create_task(server.serve(sockets=[listening]))
    stopping, watching = loop.create_task(asked.wait()), loop.create_task(life.watch())
    await asyncio.wait((serving, stopping, watching), return_when=asyncio.FIRST_COMPLETED)
    if asked.is_set():
        draining = loop.create_task(life.drain())
        await asyncio.wait((serving, draining, watching), return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    return FAILED if life.failure() else 0
