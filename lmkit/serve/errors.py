"""What goes wrong while a request is answered, as what its client is told."""

from lmkit.config.base import ConfigError
from lmkit.decode.request import EndEvent, QueueFull, Stopped
from lmkit.serve.refusal import Refused

GONE = 499  # the client went away: nobody reads the answer, the access log does


def bad(param: str | None, message: str, code: str = "") -> Refused:
    """A mistake in the request, and the member of its body that has it."""
    return Refused(400, message, code, param=param or "")


def as_refused(error: QueueFull | Stopped | ConfigError) -> Refused:
    """What an engine, or a batcher, says of a request that it does not take."""
    if isinstance(error, QueueFull):
        return Refused(429, str(error), "queue_full", retry_sec=error.retry_sec)
    if isinstance(error, Stopped):
        return Refused(503, str(error) or "the server takes no more requests", "stopping")
    return bad(None, str(error))


def failed(end: EndEvent) -> Refused | None:
    """What a text ended with that its client did not ask for."""
    if end.reason == "error":
        return Refused(500, end.message or "the engine failed", "engine_failed")
    return Refused(503, "the server has ended the request", "stopping") if end.reason == "cancelled" else None
