"""The engine: requests in from any thread, events out from its own, the loop of `core` in between."""

import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from lmkit.config.arithmetic.mesh import batch_shards
from lmkit.config.base import ConfigError
from lmkit.decode.check import check_decoder
from lmkit.decode.engine.check import check_engine, check_request
from lmkit.decode.engine.core import Core, Standing
from lmkit.decode.engine.programs import Programs, Sizes
from lmkit.decode.engine.runs import Run
from lmkit.decode.request import Emit, EngineStats, QueueFull, Request, Stopped
from lmkit.nn.forms import decoding_rows
from lmkit.parallel.devices import platform_of

_PIECES, _LEAST_PIECE = 4, 16  # sizes of the last piece of a prompt: each half of the next
_RATE_OF = 32  # admissions
_compiling: Counter[int] = Counter()  # programs that each thread has compiled


def _count_compilation(event: str, *_: Any, **__: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiling[threading.get_ident()] += 1


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


class _Ticket:
    def __init__(self, run: Run, wake: Callable[[], None]):
        self._run, self._wake = run, wake

    def cancel(self) -> None:
        self._run.cancelled = True
        self._wake()


class Engine:
    """Writes many texts at a time with one model; see docs/serve.md.

    engine = Engine(merge, params, config, slots=16)
    engine.compile()
    engine.start()
    ticket = engine.submit(Request(tokens, max_new_tokens=100), print)

    Args:
        merge, config, end_ids, suppress, suppress_first, vocab_size, mesh: as in `Decoder`.
        params: on their devices.
        slots: texts that are decoded at a time.
        length: tokens of a prompt and its text together; 0 for the model's `max_seq_len`.
        chunk: tokens of a prompt that are computed at a time, between two steps of the texts that run.
        prefix_bytes: of device memory for beginnings of prompts that were computed; 0 for none.
        queue: requests that wait, at most.

    Raises ConfigError for a model that writes no text from a prompt alone, and sizes that it cannot have.
    """

    def __init__(
        self, merge: Callable[[Any], Any], params: Any, config: Any, *, end_ids: Sequence[int] = (),
        suppress: Sequence[int] = (), suppress_first: Sequence[int] = (), vocab_size: int = 0,
        mesh: Mesh | None = None, slots: int = 16, length: int = 0, chunk: int = 256, prefix_bytes: int = 0,
        queue: int = 256,
    ):  # fmt: skip
        check_decoder(config, vocab_size, end_ids=end_ids, suppress=suppress, suppress_first=suppress_first)
        self.length = length or config.max_seq_len
        check_engine(config, mesh, slots=slots, length=self.length, chunk=chunk, queue=queue, prefix_bytes=prefix_bytes)
        self._config, self._slots, self._queue, self._prefix_bytes = config, slots, queue, prefix_bytes
        self._vocab = min(vocab_size or config.vocab_size, config.vocab_size)
        sizes = Sizes(
            *_rows(platform_of(mesh), slots, mesh), self.length, _pieces(min(chunk, self.length)), self._vocab
        )
        self._programs = Programs(merge, config, params, mesh, sizes, suppress, suppress_first)
        self._params, self._end_ids = params, tuple(end_ids)
        self._changed = threading.Condition()
        self._inbox: deque[Run] = deque()
        self._next_params: deque[Any] = deque()
        self._core: Core | None = None
        self._thread: threading.Thread | None = None
        self._draining = self._closing = False
        self._failure, self._requests, self._prompt_tokens = "", 0, 0
        self._standing, self._compiled = Standing(), 0
        self._admitted: deque[float] = deque(maxlen=_RATE_OF)  # when

    def compile(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compiles every program that it will ever run, and makes its slots."""
        self._programs.compile(progress)
        self._core = Core(self._programs, self._params, self._slots, self._prefix_bytes, self._end_ids)

    def start(self) -> None:
        """Begins to serve, on a thread of its own."""
        assert self._core is not None, "compile it first"
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, emit: Emit) -> _Ticket:
        """Takes a request. Raises QueueFull, Stopped, and ConfigError for one that can never be served."""
        check_request(request, self._config, self._vocab, self.length)
        run = Run(request, emit)
        with self._changed:
            if self._failure or self._draining or self._closing or self._thread is None:
                raise Stopped(self._failure or "the engine takes no more requests")
            waiting, free = self._waiting()
            if waiting >= self._queue + free:
                raise QueueFull(waiting, self._queue, self._retry_sec())
            self._inbox.append(run)
            self._requests += 1
            self._prompt_tokens += len(request.tokens)
            self._changed.notify()
        return _Ticket(run, self._wake)

    def swap(self, params: Any) -> None:
        """Goes on with other parameters: running requests end with those they began with.

        Raises ConfigError where their shapes or dtypes are others.
        """
        here, there = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (self._params, params))
        if here != there:
            raise ConfigError(
                "swap(params): other shapes or dtypes than those of the engine's model; start another one"
            )
        params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, self._params)
        with self._changed:
            self._next_params.append(params)
            self._changed.notify_all()

    def stats(self) -> EngineStats:
        core = self._core
        if core is None:
            return EngineStats(slots=self._slots, failure=self._failure)
        names = "cached_tokens", "new_tokens", "steps", "chunks", "preemptions"
        compiling = _compiling[self._thread.ident or 0] if self._thread else 0
        return EngineStats(
            slots=self._slots, running=self._standing.active, waiting=self._waiting()[0], requests=self._requests,
            ended=dict(core.ended), prompt_tokens=self._prompt_tokens, **{name: core.counts[name] for name in names},
            compilations=compiling, cached_bytes=core.prefixes.bytes, failure=self._failure,
        )  # fmt: skip

    def drain(self, limit_sec: float) -> bool:
        """Takes no more requests and waits for those it has; False where some were cancelled at the limit."""
        with self._changed:
            self._draining = True
            if self._changed.wait_for(self._done, limit_sec):
                return True
            for run in (*self._inbox, *(self._core.alive if self._core else ())):
                run.cancelled = True
            self._changed.notify_all()
            self._changed.wait_for(self._done)
        return False

    def close(self) -> None:
        """Ends the thread; what still runs is cancelled."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _done(self) -> bool:
        return bool(self._failure) or (self._standing.idle and not self._inbox)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _waiting(self) -> tuple[int, int]:
        """Requests that wait for the first time, and slots that are free."""
        return len(self._inbox) + self._standing.waiting, self._slots - self._standing.active

    def _retry_sec(self) -> float:
        """How long it takes, by the last admissions, until another one leaves the queue."""
        if not self._admitted:
            return 1.0
        return max(1.0, (time.monotonic() - self._admitted[0]) / len(self._admitted))

    # ---- The engine's thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        core = self._core
        assert core is not None
        reason = "cancelled"
        _compiling.pop(threading.get_ident(), None)  # of an earlier thread that had this number
        try:
            while self._take_in(core):
                before = core.counts["admitted"]
                core.tick()
                self._admitted.extend([time.monotonic()] * (core.counts["admitted"] - before))
                self._tell(core.standing)
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            reason, self._failure = "error", f"{type(error).__name__}: {error}"
        with self._changed:
            self._closing = True
            left = list(self._inbox)
            self._inbox.clear()
        core.abandon(left, reason, self._failure)
        self._tell(Standing())

    def _tell(self, standing: Standing) -> None:
        with self._changed:
            self._standing = standing
            self._changed.notify_all()

    def _take_in(self, core: Core) -> bool:
        """Waits for something to do; False where the engine is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._next_params or self._closing or not core.standing.idle)
            if self._closing:
                return False
            while self._next_params:
                core.swap(self._next_params.popleft())
            while self._inbox:
                core.take_in(self._inbox.popleft())
            self._standing = core.standing
        return True


def _rows(platform: str, slots: int, mesh: Mesh | None) -> tuple[tuple[int, ...], int]:
    """Row counts of a device's steps, and of its groups: as few groups as can be, as small as they can be."""
    counts, here = decoding_rows(platform), -(-slots // (1 if mesh is None else batch_shards(mesh.shape)))
    groups = -(-here // counts[-1])
    group = next(count for count in counts if count * groups >= here)
    return tuple(count for count in counts if count <= group), group


def _pieces(chunk: int) -> tuple[int, ...]:
    """Tokens of the pieces of a prompt, ascending."""
    sizes = [chunk >> times for times in range(_PIECES)]
    return tuple(sorted({chunk, *(size for size in sizes if size >= _LEAST_PIECE)}))
