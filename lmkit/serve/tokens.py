"""/tokenize, /detokenize, /tokenizer_info: the tokenizer, as vLLM's server and lm-eval's remote tokenizer have it."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lmkit.serve.errors import bad
from lmkit.serve.served import Server, body_of, check_ids


async def tokenize(request: Request) -> Response:
    """{"prompt": text} to {"tokens": ids}."""
    fields, served = await body_of(request, request.app.state.server)
    text, special = fields.take("prompt", str), fields.flag("add_special_tokens", True)
    fields.done()
    if text is None:
        raise bad("prompt", "prompt: give a text")
    assert served.codec is not None
    ids = served.codec.encode(text) if special else served.codec.bare(text)
    return JSONResponse({"tokens": ids, "count": len(ids)})


async def detokenize(request: Request) -> Response:
    """{"tokens": ids} to {"prompt": text}."""
    fields, served = await body_of(request, request.app.state.server)
    ids = fields.take("tokens", list)
    fields.done()
    if ids is None or not all(type(one) is int for one in ids):
        raise bad("tokens", "tokens: give a list of ids")
    assert served.codec is not None
    return JSONResponse({"prompt": served.codec.decode(check_ids(ids, "tokens", served)) if ids else ""})


async def tokenizer_info(request: Request) -> Response:
    """The tokens that begin and end a text, by names that are read as them (null without one); the chat template."""
    server: Server = request.app.state.server
    served = server.ready()
    codec, vocabulary = served.codec, served.vocabulary
    assert codec is not None
    assert vocabulary is not None

    def name(ids: list[int]) -> str | None:
        text = vocabulary.text(ids[0]) if ids else ""
        return text if text and codec.bare(text) == ids[:1] else None

    tokens = {"eos_token": name(list(codec.end_ids)), "bos_token": name(codec.encode("")[:1])}
    return JSONResponse(tokens | {"chat_template": getattr(served.conversation, "source", None)})
