"""The page at /: a playground and the live figures, in one file that asks nobody but its own server."""

import json
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lmkit.pages.page import frame, policy

HERE = Path(__file__).parent  # page.html and page.js stand beside this module, in a wheel too


def page_html(name: str, length: int = 0, chat: bool = True) -> str:
    """The page of a model. `length`: of its longest text, 0 = not known; `chat`: whether it talks."""
    tokens = min(256, length // 2) if length else 256
    points = json.dumps({"model": name, "chat": chat, "max_tokens": tokens}).replace("<", "\\u003c")
    return frame(name or "lmkit", _read("html"), script=_read("js"), points=points, connect=True)


def _read(kind: str) -> str:
    return (HERE / f"page.{kind}").read_text(encoding="utf-8")


def page_routes(name: str, length: int = 0, chat: bool = True) -> list[Route]:
    """GET /. The headers say what the page's own policy says, and that no other site may show it in a frame."""
    html = page_html(name, length, chat)
    headers = {
        "content-security-policy": f"{policy(_read('js'), connect=True)}; frame-ancestors 'none'; form-action 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    return [Route("/", page)]
