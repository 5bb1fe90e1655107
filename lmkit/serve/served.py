"""What the routes share: the model that is served, once it is ready."""

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request

from lmkit.decode import TextStream
from lmkit.decode.request import EngineLike
from lmkit.serve.call import call_of
from lmkit.serve.conversation import Conversation
from lmkit.serve.errors import bad
from lmkit.serve.fields import Fields, parse
from lmkit.serve.grammar import Grammars
from lmkit.serve.refusal import Refused
from lmkit.serve.vocabulary import Vocabulary
from lmkit.weights import Codec


class Worker(Protocol):
    """What answers beside an engine: a batcher of compiled programs."""

    def close(self) -> None: ...


@dataclass
class Served:
    """A model and what answers for it; None is what it cannot.

    Attributes:
        name: its id in /v1/models.
        fingerprints: hashes of the parameters: of the first, and of those of each swap. The same one gives the
            same texts.
        vocab_size: ids that a prompt may have are below it.
        length: tokens that a text of an encoder may have.
    """

    name: str
    fingerprints: list[str]
    vocab_size: int
    length: int
    codec: Codec | None = None
    vocabulary: Vocabulary | None = None
    engine: EngineLike | None = None
    grammars: Grammars | None = None
    conversation: Conversation | None = None
    scorer: Any = None
    embedder: Any = None
    classifier: Any = None
    listener: Any = None
    labels: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        """Of the newest parameters."""
        return self.fingerprints[-1]

    def stream(self, prompt: list[int], stop: tuple[str, ...]) -> TextStream:
        assert self.codec is not None
        return TextStream(self.codec.decode, prompt, stop)

    def close(self) -> None:
        """Ends what runs on threads of its own."""
        for one in (self.engine, self.scorer, self.embedder, self.classifier, self.listener):
            if one is not None:
                one.close()


class Server:
    """Holds the model while it is loaded and after that.

    Attributes:
        routes: what the model's family answers, such as /v1/completions.
        served: None until it is ready.
        failure: why it never will be, or is no more.
    """

    def __init__(self, name: str, routes: tuple[str, ...]):
        self.name, self.routes, self.failure = name, routes, ""
        self.served: Served | None = None
        self.created = int(time.time())

    def ready(self) -> Served:
        """What answers. Raises Refused where it is not ready."""
        if self.served is None:
            why = self.failure or "the model is being loaded and compiled; /ready tells when it can answer"
            raise Refused(503, why, "not_ready", retry_sec=None if self.failure else 5)
        return self.served


async def body_of(request: Request, server: Server) -> tuple[Fields, Served]:
    """The members of a request's JSON, and what answers it. Raises Refused where it asks for another model."""
    served = server.ready()
    fields = Fields(parse(await request.body()))
    check_model(fields.text("model", served.name), served)
    return fields, served


def check_model(name: str, served: "Served | Server") -> None:
    if name != served.name:
        raise Refused(
            404, f"model={name[:80]!r}: this server has {served.name!r} alone", "model_not_found", param="model"
        )


def check_ids(ids: list[int], param: str, served: Served) -> list[int]:
    """The ids. Raises Refused for a text of no token, and for ids that the model does not have."""
    if not ids:
        raise bad(param, f"{param}: a text of no token; give it at least one")
    if wrong := [one for one in ids if not 0 <= one < served.vocab_size]:
        raise bad(param, f"{param}: the model has no token {wrong[0]}, they are 0 to {served.vocab_size - 1}")
    return ids


def room_for(
    request: Request, served: Served, prompts: list[list[int]], asked: int | None, n: int, name: str, default: int
) -> int:
    """How many tokens each text may have: as asked, else `default` or what is left.

    Raises Refused where prompt and text together are longer than the cache.
    """
    assert served.engine is not None
    longest, length = max(map(len, prompts)), served.engine.length
    if longest + (asked or 1) > length:
        raise bad(
            "messages" if name == "max_completion_tokens" and asked is None else name if longest < length else "prompt",
            f"a prompt of {longest} tokens and {name}={asked or 1} need {longest + (asked or 1)} tokens; this server "
            f"has {length} for a request: " + (f"set {name}={length - longest}, or " if longest < length else "")
            + "shorten the prompt",
            "context_length_exceeded",
        )  # fmt: skip
    most = min(default, length - longest) if asked is None else asked
    call_of(request.scope).charge(sum(map(len, prompts)), most * n * len(prompts))
    return most
