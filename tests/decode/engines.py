"""Engines for tests: their programs are compiled once for all that have the same sizes."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from flax import nnx

from helpers import params_of
from lmkit.config.sections.families import GPTConfig
from lmkit.decode import Decoder, Engine, Sampling
from lmkit.decode.request import EndEvent, Request, TokenEvent
from lmkit.models import build_model
from lmkit.nn.param import param_specs
from lmkit.parallel.rules import sharding_of

TEXT: dict[str, Any] = {"vocab_size": 64, "num_layers": 2, "num_heads": 4, "embed_dim": 32, "init_std": 0.3}
Events = list[TokenEvent | EndEvent]


class Subject:
    """A model with engines for it."""

    def __init__(self, mesh: Any = None, **changes: Any):
        self.config, self.mesh = GPTConfig(**(TEXT | changes)), mesh
        self.graph, self.params = self.fresh(0)
        self._programs: dict[Any, Any] = {}

    def fresh(self, seed: int) -> tuple[Any, Any]:
        graph, params = params_of(build_model(self.config, nnx.Rngs(seed)))
        if self.mesh is not None:
            specs = param_specs(nnx.split(nnx.eval_shape(lambda: build_model(self.config, nnx.Rngs(0))))[1])
            params = jax.tree.map(
                lambda v, s: jax.device_put(v, sharding_of(s.dims, self.mesh, s.shape)), params, specs
            )
        return graph, params

    def merge(self, params: Any) -> Any:
        return nnx.merge(self.graph, nnx.State(params))

    def decoder(self, **more: Any) -> Decoder:
        return Decoder(self.merge, self.config, Sampling(), mesh=self.mesh, **more)

    @contextmanager
    def engine(self, *, start: bool = True, **options: Any) -> Iterator[Engine]:
        """One that serves; `options` of Engine."""
        options = {"slots": 16, "length": 96, "chunk": 16} | options
        engine = Engine(self.merge, self.params, self.config, mesh=self.mesh, **options)
        tokens = {name: tuple(options[name]) for name in options if name.startswith("suppress")}
        key = (engine._programs.sizes, str(tokens))
        engine._programs = self._programs.setdefault(key, engine._programs)
        engine.compile()
        if start:
            engine.start()
        try:
            yield engine
        finally:
            engine.close()


class Answers:
    """Collects the events of requests."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.events: list[Events] = []
        self.order: list[int] = []  # whose event came
        self._ends = threading.Semaphore(0)
        self._lock = threading.Lock()

    def ask(self, request: Request, when: Any = None) -> Any:
        """Submits it; `when(events)` is called after each event, on the engine's thread."""
        with self._lock:
            number, mine = len(self.events), []
            self.events.append(mine)

        def emit(event: TokenEvent | EndEvent) -> None:
            mine.append(event)
            self.order.append(number)
            if when is not None:
                when(mine)
            if isinstance(event, EndEvent):
                self._ends.release()

        return self.engine.submit(request, emit)

    def wait(self, count: int = 0) -> list[Events]:
        """Until so many have ended, all by default."""
        for _ in range(count or len(self.events)):
            assert self._ends.acquire(timeout=300), self.engine.stats()
        return self.events


def answers(engine: Engine, requests: Sequence[Request]) -> list[Events]:
    """Of requests that are there at once."""
    several = Answers(engine)
    for request in requests:
        several.ask(request)
    return several.wait()


def tokens_of(events: Events) -> list[int]:
    return [event.token for event in events if isinstance(event, TokenEvent)]


def end_of(events: Events) -> EndEvent:
    *_, end = events
    assert isinstance(end, EndEvent)
    return end


def same(a: Events, b: Events) -> bool:
    """The same tokens and the same bits of every log-probability; how much was cached may differ."""
    tokens, others = ([event[:3] for event in events[:-1]] for events in (a, b))
    return tokens == others and end_of(a).reason == end_of(b).reason
