"""How much one key, and one request, may ask for.

A key's limits are of any 60 seconds, not of a bucket that fills: a bucket of N lets up to 2 N through in its first
minute. The window also says exactly when there is room again, which is the Retry-After.

Tokens are counted before the work, as prompt + max_tokens, and corrected when the answer has ended. Counted afterwards
only, a key could start any number of long answers at once. Only an answer's own tokens stay counted.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmkit.serve.call import Call, call_of
from lmkit.serve.keys import Key
from lmkit.serve.refusal import Refused

SPAN_SEC = 60.0


class _Entry:
    __slots__ = ("amount", "when")

    def __init__(self, when: float, amount: int):
        self.when, self.amount = when, amount


class Window:
    """What was used in the last SPAN_SEC seconds. The clock is the caller's."""

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()

    def used(self, now: float) -> int:
        """Of the last SPAN_SEC."""
        while self._entries and self._entries[0].when <= now - SPAN_SEC:
            self._entries.popleft()
        return sum(entry.amount for entry in self._entries)

    def wait(self, now: float, amount: int, limit: int) -> float:
        """Seconds until `amount`, at most `limit`, fits; 0.0 = it fits now."""
        over, wait = self.used(now) + amount - limit, 0.0
        for entry in self._entries:
            if over <= 0:
                break
            over, wait = over - entry.amount, entry.when + SPAN_SEC - now
        return wait

    def add(self, now: float, amount: int) -> _Entry:
        """Counts an amount. Its entry may be corrected later."""
        self._entries.append(entry := _Entry(now, amount))
        return entry


class _Used(NamedTuple):
    requests: Window
    tokens: Window


class Limits:
    """Around an application: the size of a request's body, and requests and tokens a minute of its key.

    Args:
        max_body: bytes.
        clock: seconds, for tests.
    """

    def __init__(self, app: ASGIApp, max_body: int, clock: Callable[[], float] = time.monotonic):
        self.app, self.max_body, self.clock = app, max_body, clock
        self._used: dict[str, _Used] = {}  # by name: a new key of an owner does not begin anew

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call, key = call_of(scope), scope.get("lmkit.key")
        try:
            length = Headers(scope=scope).get("content-length", "")
            self._check_size(int(length) if length.isdecimal() else 0)
            if key is not None and scope["path"].startswith("/v1/"):
                self._admit(call, key)
        except Refused as refused:
            await refused.response()(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            self._check_size(taken)  # a body in chunks says no length before
            return message

        await self.app(scope, counted, send)

    def _check_size(self, size: int) -> None:
        if size > self.max_body:
            message = f"the body has {size:,} bytes or more, and serve.max_body_mib allows {self.max_body:,}"
            raise Refused(413, message, "body_too_large", headers={"connection": "close"})

    def _admit(self, call: Call, key: Key) -> None:
        now = self.clock()
        used = self._used.setdefault(key.name, _Used(Window(), Window()))
        if key.requests_per_minute:
            if wait := used.requests.wait(now, 1, key.requests_per_minute):
                raise _over("requests", key.requests_per_minute, wait)
            used.requests.add(now, 1)  # one that is refused does not count: who comes again too soon is not shut out
        if key.tokens_per_minute:
            call.counted = lambda prompt, new: self._charge(call, used.tokens, key.tokens_per_minute, prompt, new)

    def _charge(self, call: Call, tokens: Window, limit: int, prompt: int, new: int) -> None:
        if prompt > limit:
            message = f"the prompt has {prompt} tokens, and this key may have {limit} a minute: send a shorter prompt"
            raise Refused(400, message, "prompt_above_limit")
        now = self.clock()
        # A request that says no max_tokens may become longer than the limit: it needs the whole minute, not an error.
        if wait := tokens.wait(now, min(prompt + new, limit), limit):
            raise _over("tokens", limit, wait)
        entry = tokens.add(now, min(prompt + new, limit))
        call.at_end.append(lambda: setattr(entry, "amount", call.prompt_tokens + call.new_tokens))


def _over(what: str, limit: int, wait: float) -> Refused:
    message = f"this key may have {limit} {what} a minute: come again in {wait:.0f} s"
    return Refused(429, message, "rate_limit_exceeded", retry_sec=wait)
