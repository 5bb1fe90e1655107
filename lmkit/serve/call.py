"""A request under way: what its handler knows of it and what stands around the handlers needs."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def _uncounted(prompt_tokens: int, max_new_tokens: int) -> None:
    """Where nothing limits the tokens of a key."""


@dataclass(slots=True)
class Call:
    """One request. Its handler gets it by `call_of` and says what it learns:

        call.charge(prompt_tokens, max_new_tokens)   # before the work; raises Refused above the limit of the key
        call.token(choice, when)                     # at each token that was written, on the event loop
        call.cached_tokens = ...; call.texts = {"prompt": ..., "answer": ...}

    Attributes:
        when: Unix time of its arrival.
        id: sent to the client as the header x-request-id.
        owner: the name of its key, "" without keys.
        role: "user" or "admin"; without keys everybody is an admin.
        route: the template of its path, such as /v1/models/{model}; "" where no route has it.
        status: of HTTP; 0 before the answer has begun.
        complete: whether the answer was sent to its end.
        first_sec: seconds to the first token.
        seconds: to the end of the answer.
        texts: what may be logged where the operator asks for it.
    """

    method: str
    client: str
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")
    when: float = field(default_factory=time.time)
    started: float = field(default_factory=time.perf_counter)
    owner: str = ""
    role: str = "admin"
    route: str = ""
    status: int = 0
    complete: bool = False
    prompt_tokens: int = 0
    new_tokens: int = 0
    cached_tokens: int = 0
    first_sec: float | None = None
    seconds: float = 0.0
    texts: Mapping[str, Any] = field(default_factory=dict)
    counted: Callable[[int, int], None] = _uncounted  # set by what limits tokens
    on_token: Callable[["Call", float | None], None] | None = None  # seconds since the choice's last; None: its first
    at_end: list[Callable[[], None]] = field(default_factory=list)
    _last: dict[int, float] = field(default_factory=dict)

    def charge(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Says how large the request may become. Raises Refused where its key may not have so much now."""
        self.prompt_tokens = prompt_tokens
        self.counted(prompt_tokens, max_new_tokens)

    def token(self, choice: int = 0, when: float = 0.0) -> None:
        """One token of one of the texts that the request asked for (`n`); when: by `time.perf_counter`, 0 = now."""
        now = when or time.perf_counter()
        self.new_tokens += 1
        if self.first_sec is None:
            self.first_sec = now - self.started
        before = self._last.get(choice)
        self._last[choice] = now
        if self.on_token is not None:
            self.on_token(self, None if before is None else now - before)


def call_of(scope: Scope) -> Call:
    """The Call of a request, by `request.scope`; a new one where nothing stands around the handler."""
    if "lmkit" not in scope:
        client = scope.get("client")
        scope["lmkit"] = Call(scope.get("method", ""), client[0] if client else "")
    return scope["lmkit"]


class Calls:
    """Around an application: makes the Call of each request, and shows it around when it has ended.

    Args:
        ended: called with every Call at its end, whatever the end was.
        on_token: called at each token; see Call.
    """

    def __init__(
        self, app: ASGIApp, ended: Sequence[Callable[[Call], None]],
        on_token: Callable[[Call, float | None], None] | None = None,
    ):  # fmt: skip
        self.app, self.ended, self.on_token = app, ended, on_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = call_of(scope)
        call.on_token = self.on_token

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = call.id
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                call.complete = True

        try:
            await self.app(scope, receive, noted)
        finally:
            call.seconds = time.perf_counter() - call.started
            call.route = getattr(scope.get("route"), "path", "")
            for do in call.at_end:
                do()
            for tell in self.ended:
                tell(call)
