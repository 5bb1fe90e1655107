"""The answers' outer forms: one JSON object, or server-sent events; both end where the client goes away."""

import asyncio
import contextlib
import json
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lmkit.serve.errors import GONE
from lmkit.serve.refusal import Refused, error_body

T = TypeVar("T")


class Gone(Exception):
    """The client has closed its connection."""


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result. Raises Gone where the client goes away before; the work is cancelled then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await one


async def answer(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """What the work makes; nothing of interest where nobody waits for it any more."""
    try:
        return await unless_gone(request.receive, work)
    except Gone:
        return Response(status_code=GONE)


class Events(Response):
    """Server-sent events: each object as a line `data: {...}`, then `data: [DONE]`.

    The first one is made before the answer begins, so that what fails before it has a status of its own. What fails
    later comes as a last event {"error": ...}.

    Args:
        ended: called at the end, whatever the end was.
    """

    def __init__(self, events: AsyncGenerator[dict[str, Any], None], ended: Callable[[], None]):
        super().__init__(headers={"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events, self._ended = events, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(Gone, OSError):
                await unless_gone(receive, self._send(send))
        finally:
            self._ended()

    async def _send(self, send: Send) -> None:
        async def data(body: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": f"data: {body}\n\n".encode(), "more_body": more})

        async with contextlib.aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await data(dumps(first))
            try:
                async for event in events:
                    await data(dumps(event))
            except Refused as error:
                await data(dumps(error.body()))
            except OSError:  # of the connection
                raise
            except Exception:
                traceback.print_exc()
                await data(dumps(error_body(500, "the server failed at this request; its log says why")))
        await data("[DONE]", more=False)


def dumps(value: Any) -> str:
    """JSON as short as it can be."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
