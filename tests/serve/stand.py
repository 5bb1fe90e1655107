"""A small application behind the guard, and a client of it in this process."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from lmkit.decode.request import EngineStats
from lmkit.serve.call import call_of
from lmkit.serve.guard import Guard
from lmkit.serve.life import listen
from lmkit.serve.refusal import HANDLERS


class Stand:
    """An engine's figures that a test sets, and handlers that do what the request's body says.

    {"prompt": tokens, "new": tokens, "max": tokens, "sleep": sec, "stream": bool, "crash": bool}
    """

    def __init__(self, **settings: Any):
        self.stats = EngineStats(slots=4)
        self.cancelled = 0
        self.guard = Guard(lambda: self.stats, **settings)
        routes = [Route("/v1/write", self.write, methods=["POST"]), Route("/v1/models/{name}", self.model)]
        self.app = self.guard.around(Starlette(routes=[*routes, *self.guard.routes], exception_handlers=HANDLERS))
        self.guard.life.ready()

    async def model(self, request: Request) -> Response:
        return JSONResponse({"owner": call_of(request.scope).owner})

    async def write(self, request: Request) -> Response:
        asked, call = await request.json(), call_of(request.scope)
        call.charge(asked.get("prompt", 1), asked.get("max", asked.get("new", 1)))
        call.texts = {"prompt": asked.get("text", "")}
        if asked.get("crash"):
            raise RuntimeError("the secret of the house")
        if asked.get("stream"):
            return StreamingResponse(self.tokens(asked, call), media_type="text/event-stream")
        async for _ in self.tokens(asked, call):
            pass
        return JSONResponse({"new": call.new_tokens})

    async def tokens(self, asked: dict, call: Any) -> AsyncIterator[str]:
        try:
            for number in range(asked.get("new", 1)):
                call.token()
                yield f"data: {json.dumps({'n': number})}\n\n"
                await asyncio.sleep(asked.get("sleep", 0))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def client(self, key: str = "", host: str = "localhost", **settings: Any) -> httpx.AsyncClient:
        headers = ({"authorization": f"Bearer {key}"} if key else {}) | settings.pop("headers", {})
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers, **settings)

    def ask(
        self, *calls: tuple[str, str] | tuple[str, str, Any], key: str = "", **settings: Any
    ) -> list[httpx.Response]:
        """The answers to (method, path, JSON), one after the other."""

        async def run() -> list[httpx.Response]:
            async with self.client(key, **settings) as client:
                return [
                    await client.request(call[0], call[1], json=call[2] if len(call) > 2 else None) for call in calls
                ]

        return asyncio.run(run())


class Served:
    """A server on a thread of its own."""

    def __init__(self, app: ASGIApp):
        listening = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, args=([listening],))

    def __enter__(self) -> str:
        self._thread.start()
        return self.url

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer; fails where it has not OpenAI's shape."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert "\n" not in error["message"]
    return error


def rows(path: Path) -> list[dict]:
    """The lines of a log."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]
