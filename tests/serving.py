"""A server on a thread, as the tests of lmkit.serve need it, and an engine that says what a test wants."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn

from lmkit.data.tokens.chat import ChatTemplate
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.decode.request import EndEvent, EngineStats, QueueFull, Request, Stopped, TokenEvent
from lmkit.serve.app import make_app
from lmkit.serve.conversation import Template
from lmkit.serve.grammar import Grammars
from lmkit.serve.served import Served, Server
from lmkit.serve.vocabulary import Vocabulary
from lmkit.weights import codec_of

END = 256  # of bytes
HERMES = """{% if tools %}Tools: {{ tools | tojson }} Call one as <tool_call>{"name": ..., "arguments": ...}</tool_call>
{% endif %}{% for m in messages %}{% if m.role == "critic" %}{{ raise_exception("no critics") }}{% endif %}
[{{ m.role }}] {{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>
{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""
GPT_ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize")


def hashed_letter(request: Request, index: int) -> int:
    """A small letter that is a function of prompt, seed and place."""
    digest = hashlib.sha256(f"{request.tokens} {request.seed} {index}".encode()).digest()
    return 97 + digest[0] % 26


def at_once(ask: Callable[[int], Any], count: int) -> list[Any]:
    """What `ask` gives for each number, a thread each."""
    found: list[Any] = [None] * count
    threads = [threading.Thread(target=lambda n=n: found.__setitem__(n, ask(n))) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class ScriptedEngine:
    """Says `say(request, index)` for each place, None at the end; one thread a request, at most `slots` at a time."""

    def __init__(self, say: Callable[[Request, int], int | None] = hashed_letter, *, length: int = 512,
                 slots: int = 64, wait_sec: float = 0.0):  # fmt: skip
        self.say, self.length, self.slots, self.wait_sec = say, length, slots, wait_sec
        self.running, self.seen, self.ended, self.stopped, self.version = 0, [], {}, False, 0

    def submit(self, request: Request, emit: Callable) -> Any:
        if self.stopped:
            raise Stopped("the engine drains")
        if self.running >= self.slots:
            raise QueueFull(self.running, self.slots, 2.2)
        self.running += 1
        self.seen.append(request)
        gone = threading.Event()
        threading.Thread(target=self._work, args=(request, emit, gone), daemon=True).start()
        return type("Ticket", (), {"cancel": staticmethod(gone.set)})

    def _work(self, request: Request, emit: Callable, gone: threading.Event) -> None:
        reason = "length"
        for index in range(request.max_new_tokens):
            if gone.wait(self.wait_sec) if self.wait_sec else gone.is_set():
                reason = "cancelled"
                break
            if (token := self._next(request, index)) is None:
                reason = "end"
                break
            top = tuple((97 + n, -1.0 - n) for n in range(request.top_logprobs))
            emit(TokenEvent(token, -1.0, top, self.version))
            if request.grammar is not None and not request.grammar.accept(token):
                reason = "end"
                break
        self.running -= 1
        self.ended[reason] = self.ended.get(reason, 0) + 1
        emit(EndEvent(reason, cached_tokens=1))

    def _next(self, request: Request, index: int) -> int | None:
        if request.grammar is None:
            return self.say(request, index)
        allowed = np.flatnonzero(request.grammar.mask())
        token = int(allowed[hashed_letter(request, index) * 7 % len(allowed)])
        return None if token == END else token

    def stats(self) -> EngineStats:
        return EngineStats(slots=self.slots, running=self.running)

    def close(self) -> None: ...


def served_bytes(engine: Any, template: str = HERMES, **more: Any) -> Served:
    """A model of bytes."""
    codec = codec_of(ByteTokenizer(), sources=False)
    vocabulary = Vocabulary(codec)
    talk = Template(ChatTemplate(template, "<|end|>"), codec) if template else None
    return Served(
        "tiny", ["fp_tiny"], codec.vocab_size, engine.length if engine else 64, codec, vocabulary, engine,
        Grammars(codec, vocabulary, codec.vocab_size), talk, **more,
    )  # fmt: skip


def ready_server(served: Served, routes: tuple[str, ...] = GPT_ROUTES) -> Server:
    server = Server(served.name, routes)
    server.served = served
    return server


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of an application that uvicorn serves on a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def running_model(served: Served, routes: tuple[str, ...] = GPT_ROUTES) -> Iterator[str]:
    with running(make_app(ready_server(served, routes))) as address:
        yield address
    served.close()
