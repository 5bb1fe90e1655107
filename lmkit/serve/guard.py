"""All that stands around the API, in its order: who asks, how much, what is written down, and whether the server runs.

    guard = Guard(engine.stats, max_body=2**20, keys=Path("keys.yaml"))
    app = guard.around(Starlette(routes=[*api, *guard.routes], exception_handlers=HANDLERS))
    sys.exit(run_server(app, guard.life, listen("127.0.0.1", 8000)))

A request passes Calls (log and metrics), Gate (state of the server, time), Authenticate, Limits, then the application.
"""

from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.types import ASGIApp

from lmkit.decode.request import EngineStats
from lmkit.serve.access import AccessLog
from lmkit.serve.authenticate import Authenticate
from lmkit.serve.call import Calls
from lmkit.serve.keys import Keys
from lmkit.serve.life import Gate, Life
from lmkit.serve.limits import Limits
from lmkit.serve.metrics import Metrics
from lmkit.serve.page import page_routes


class Guard:
    """Life, keys, log, metrics and page of one server, by plain values.

    Args:
        stats: of the engine, at this moment; from any thread.
        reload: loads a newer checkpoint and returns what it did, in a line.
        name, length, chat: of the model, for the page; see `page_html`.
        keys: a file of keys; None = everybody on this machine.
        max_body: bytes of a request.
        timeout_sec: for one request; 0 = none.
        drain_sec: for those in hand after SIGTERM.
        access_log: a file; None = none.
        log_texts: whether it has prompts and answers.
        page: whether / is the playground.
        metrics: whether /metrics is answered.

    Raises ConfigError where the file of keys or the log cannot be used.
    """

    def __init__(
        self, stats: Callable[[], EngineStats], *, reload: Callable[[], str] | None = None, name: str = "",
        length: int = 0, chat: bool = True, keys: Path | None = None, max_body: int = 2**23,
        timeout_sec: float = 0.0, drain_sec: float = 30.0,
        access_log: Path | None = None, log_texts: bool = False, page: bool = True, metrics: bool = True,
    ):  # fmt: skip
        self.life = Life(stats, reload, drain_sec)
        self.keys = Keys(keys) if keys else None
        self.log = AccessLog(access_log, log_texts) if access_log else None
        self.metrics = Metrics(stats, lambda: self.log.lost if self.log else 0)
        self._max_body, self._timeout_sec = max_body, timeout_sec
        figures = [route for route in self.metrics.routes if metrics or route.path != "/metrics"]
        self.routes = [*self.life.routes, *figures, *(page_routes(name, length, chat) if page else [])]

    def around(self, app: Starlette) -> ASGIApp:
        """The application with all that stands around it."""
        app.router.redirect_slashes = False  # a path that no route has is a 404, not a redirect to one that has
        limited = Limits(app, self._max_body)
        gated = Gate(Authenticate(limited, self.keys), self.life, self._timeout_sec)
        return Calls(gated, [*([self.log] if self.log else []), self.metrics.ended], self.metrics.on_token)
