"""What is refused, in the shape that clients of OpenAI's API read."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(HTTPException):
    """A request that is not served. A handler raises it, or what stands around the handlers.

    Args:
        status: of HTTP.
        message: one line that names what is wrong and the way out.
        code: a word that programs may look at.
        retry_sec: when to come again; sent as whole seconds, rounded up.
        param: the field of the request that is wrong.
    """

    def __init__(
        self, status: int, message: str, code: str = "", *, retry_sec: float | None = None, param: str = "",
        headers: Mapping[str, str] | None = None,
    ):  # fmt: skip
        again = {} if retry_sec is None else {"retry-after": str(max(1, math.ceil(retry_sec)))}
        super().__init__(status, message, {**(headers or {}), **again})
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}."""
        return error_body(self.status_code, self.detail, self.code, self.param)

    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.body(), self.status_code, self.headers)


def error_body(status: int, message: str, code: str = "", param: str = "") -> dict[str, Any]:
    """An error as OpenAI's API has it."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param or None, "code": code or None}}


async def _refuse(request: Request, error: Exception) -> Response:
    """Of a Refused, and of the 404 and 405 that starlette raises itself."""
    if isinstance(error, Refused):
        return error.response()
    assert isinstance(error, HTTPException)
    known = {
        404: (f"there is no {request.method} {request.url.path!r:.100}; GET /v1/models names the model", "not_found"),
        405: (f"{request.url.path!r:.100} does not take {request.method}", "method_not_allowed"),
    }
    message, code = known.get(error.status_code, (error.detail, ""))
    return JSONResponse(error_body(error.status_code, message, code), error.status_code, error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    """Of what nobody expected: the server's own log has the traceback, the client gets no part of it."""
    return JSONResponse(error_body(500, "the server failed at this request; its log says why"), 500)


HANDLERS: dict[Any, Any] = {HTTPException: _refuse, Exception: _fail}  # for Starlette(exception_handlers=)
