"""The application: routes of what the model's family answers, and errors in one shape."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lmkit.config.sections.families import BERTConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.serve.chat import chat
from lmkit.serve.completions import completions
from lmkit.serve.embeddings import embeddings
from lmkit.serve.labels import classify
from lmkit.serve.refusal import HANDLERS, Refused
from lmkit.serve.served import Server, check_model
from lmkit.serve.tokens import detokenize, tokenize, tokenizer_info
from lmkit.serve.transcriptions import transcriptions

_ROUTES: dict[str, Any] = {
    "/v1/completions": completions,
    "/v1/chat/completions": chat,
    "/v1/embeddings": embeddings,
    "/v1/classify": classify,
    "/v1/audio/transcriptions": transcriptions,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}


def routes_of(config: Any) -> tuple[str, ...]:
    """The paths that a model of this family answers. () where none."""
    tokens = ("/tokenize", "/detokenize")
    if isinstance(config, GPTConfig):
        return ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", *tokens)
    if isinstance(config, BERTConfig):
        classes = ("/v1/classify",) if config.num_classes > 1 and not config.classify_tokens else ()
        return ("/v1/embeddings", *classes, *tokens)
    if isinstance(config, EncDecConfig) and config.num_mels:
        return ("/v1/audio/transcriptions",)
    if isinstance(config, ViTConfig) and config.num_classes > 1:
        return ("/v1/classify",)
    return ()


def make_app(server: Server, more: list[Route] | None = None) -> Starlette:
    """The application; `more`: routes of what stands around it."""
    routes = [Route(path, _ROUTES[path], methods=["POST"]) for path in server.routes]
    if "/tokenize" in server.routes:
        routes.append(Route("/tokenizer_info", tokenizer_info))
    routes += [Route("/v1/models", _models), Route("/v1/models/{model:path}", _model), *(more or [])]
    others = [path for path in _ROUTES if path not in server.routes]
    routes += [Route(path, _elsewhere, methods=["GET", "POST"]) for path in others]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    app.state.server = server
    return app


def _entry(server: Server) -> dict[str, Any]:
    return {"id": server.name, "object": "model", "created": server.created, "owned_by": "lmkit"}


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_entry(request.app.state.server)]})


async def _model(request: Request) -> Response:
    server: Server = request.app.state.server
    check_model(request.path_params["model"], server)
    return JSONResponse(_entry(server))


async def _elsewhere(request: Request) -> Response:
    """A route that other families have."""
    server: Server = request.app.state.server
    raise Refused(
        404, f"{request.url.path}: the model {server.name!r} does not do this; it answers {', '.join(server.routes)}",
        "not_served",
    )  # fmt: skip
