"""Who asks, and whether they may."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from lmkit.serve.call import call_of
from lmkit.serve.keys import Keys
from lmkit.serve.refusal import Refused

OPEN = frozenset({"/", "/health", "/ready", "/metrics"})  # need no key
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class Authenticate:
    """Around an application: who asks, and whether they may.

    With keys, every path but those of `open_paths` needs one, and paths below /admin/ one of an admin. Without keys
    everybody is an admin; then only requests are taken that name this machine as their host and come from no other
    site's page, so that no page in a browser here can use the server.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, open_paths: Collection[str] = OPEN):
        self.app, self.keys, self.open_paths = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except Refused as refused:
                await refused.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        call = call_of(scope)
        if self.keys is None:
            _check_local(headers.get(b"host", ""), headers.get(b"origin", ""))
            return
        call.role = ""
        if scope["path"] in self.open_paths:
            return
        scheme, _, secret = headers.get(b"authorization", "").partition(" ")
        key = self.keys.find(secret.strip() if scheme.lower() == "bearer" else "")
        if key is None:
            message = "the API key is missing, wrong, revoked or expired: send the header Authorization: Bearer KEY"
            raise Refused(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        call.owner, call.role, scope["lmkit.key"] = key.name, key.role, key
        if scope["path"].startswith("/admin/") and key.role != "admin":
            raise Refused(403, f"{scope['path']} needs a key with the role admin; yours is {key.role}", "forbidden")


def _check_local(host: str, origin: str) -> None:
    name = urlsplit(f"//{host}").hostname or ""
    if host and name not in LOCAL:
        message = f"without serve.keys the server answers to {', '.join(sorted(LOCAL))} only, not to {name:.80}"
        raise Refused(403, f"{message}: set serve.keys", "forbidden")
    if origin and urlsplit(origin).netloc != host:
        raise Refused(403, f"without serve.keys pages of other sites, such as {origin:.80}, are refused", "forbidden")
