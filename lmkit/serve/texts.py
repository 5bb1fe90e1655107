"""Texts under way: from an engine's events, which come on its thread, to pieces of text on the event loop."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from lmkit.config.base import ConfigError
from lmkit.decode import TextStream
from lmkit.decode.request import EndEvent, EngineLike, QueueFull, Request, Stopped, Ticket, TokenEvent
from lmkit.serve.call import Call
from lmkit.serve.errors import as_refused, failed

_REASONS = {"end": "stop", "length": "length"}


class Piece(NamedTuple):
    """What has become certain of one text.

    Attributes:
        choice: which of the texts.
        text: more of it; nothing of a stop string, no half characters.
        tokens: those that came since the last piece. Text may wait for the next token, so that these are not always
            the tokens of `text`.
        finish: "stop" or "length" in the last piece, else "".
    """

    choice: int
    text: str
    tokens: tuple[TokenEvent, ...]
    finish: str


class Texts:
    """Requests of one client, submitted together.

    Args:
        streams: what makes text of each request's tokens.

    Raises Refused where the engine does not take one of them; then none of them runs.
    """

    def __init__(self, engine: EngineLike, requests: Sequence[Request], streams: Sequence[TextStream], call: Call):
        self._loop, self._events, self._streams, self._call = asyncio.get_running_loop(), asyncio.Queue(), streams, call
        self._tickets: list[Ticket] = []
        self.new_tokens = self.cached_tokens = 0
        self.version = -1  # of the parameters that wrote the last token; -1 before the first: the newest
        try:
            for choice, request in enumerate(requests):
                self._tickets.append(engine.submit(request, lambda event, choice=choice: self._emit(choice, event)))
        except (QueueFull, Stopped, ConfigError) as error:
            self.cancel()
            raise as_refused(error) from error

    def _emit(self, choice: int, event: TokenEvent | EndEvent) -> None:
        """On the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended before the engine
            self._loop.call_soon_threadsafe(self._events.put_nowait, (choice, event, time.perf_counter()))

    def cancel(self) -> None:
        """Frees the slots of all that still run."""
        for ticket in self._tickets:
            ticket.cancel()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """All pieces of all texts, as they come. Raises Refused where the engine could not go on.

        Whoever stops to listen before the end frees the slots.
        """
        going, kept = set(range(len(self._streams))), [[] for _ in self._streams]
        try:
            while going:
                choice, event, when = await self._events.get()
                if choice not in going:
                    continue
                stream, finish = self._streams[choice], ""
                if isinstance(event, EndEvent):
                    if error := failed(event):
                        raise error
                    self.cached_tokens += event.cached_tokens
                    text, finish = stream.finish(), _REASONS[event.reason]
                    finish = "stop" if stream.stopped else finish
                else:
                    self.new_tokens, self.version = self.new_tokens + 1, event.version
                    self._call.token(choice, when)
                    kept[choice].append(event)
                    text = stream.push(event.token)
                    if stream.stopped:
                        finish = "stop"
                        self._tickets[choice].cancel()
                if text or finish:
                    yield Piece(choice, text, tuple(kept[choice]), finish)
                    kept[choice].clear()
                if finish:
                    going.discard(choice)
        finally:
            self.cancel()
            self._call.cached_tokens = self.cached_tokens


class Whole(NamedTuple):
    """One text at its end."""

    text: str
    tokens: tuple[TokenEvent, ...]
    finish: str


async def whole(texts: Texts, count: int) -> list[Whole]:
    """The texts, when all have ended."""
    found = [Whole("", (), "") for _ in range(count)]
    async with contextlib.aclosing(texts.pieces()) as pieces:
        async for piece in pieces:
            one = found[piece.choice]
            found[piece.choice] = Whole(one.text + piece.text, one.tokens + piece.tokens, piece.finish)
    return found
