"""Rows of many clients through programs of few shapes, each compiled before the first client comes.

A batch always has the same number of rows, of one of a few lengths. So a row's result is a function of the row alone:
the same bits alone and among others. R rows, T tokens.
"""

import asyncio
import collections
import concurrent.futures
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lmkit.compiler.programs import jit
from lmkit.config.arithmetic.mesh import batch_shards
from lmkit.data.loader import array_sharding
from lmkit.decode.request import QueueFull, Stopped
from lmkit.parallel.devices import platform_of
from lmkit.parallel.rules import put_rows, sharding_of
from lmkit.serve.errors import as_refused

_LEAST, _STEP = 64, 4  # lengths: 64, 256, 1024, ...
_ROWS = 4  # of a batch, on each shard of it
_RETRY_SEC = 1.0


class _Job(NamedTuple):
    kind: Hashable
    row: Any
    future: concurrent.futures.Future


class Batcher:
    """A thread that takes waiting rows of one kind, at most `rows`, and runs them together.

    Args:
        run: (kind, rows) -> a result for each.
        queue: rows that may wait.
    """

    def __init__(self, run: Callable[[Any, list[Any]], Sequence[Any]], rows: int, queue: int):
        self._run, self._rows, self._most = run, rows, queue
        self._jobs: collections.deque[_Job] = collections.deque()
        self._wake, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="lmkit-batcher", daemon=True)
        self._thread.start()

    async def ask(self, kind: Hashable, row: Any) -> Any:
        """The row's result. Raises Refused where too many wait."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        with self._wake:
            if self._closed:
                raise as_refused(Stopped("the server takes no more requests"))
            if len(self._jobs) >= self._most + self._rows:
                raise as_refused(QueueFull(len(self._jobs), self._most + self._rows, _RETRY_SEC))
            self._jobs.append(_Job(kind, row, future))
            self._wake.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Ends the thread; rows that wait are not answered."""
        with self._wake:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._wake.notify()
        self._thread.join()

    def _next(self) -> list[_Job]:
        """Waits for rows: the oldest one, and others of its kind. [] at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._jobs or self._closed)
            taken: list[_Job] = []
            left: collections.deque[_Job] = collections.deque()
            while self._jobs:
                job = self._jobs.popleft()
                if len(taken) < self._rows and (not taken or job.kind == taken[0].kind):
                    if job.future.set_running_or_notify_cancel():  # not where the client has gone
                        taken.append(job)
                else:
                    left.append(job)
            self._jobs = left
            return taken

    def _work(self) -> None:
        while not self._closed:
            if not (jobs := self._next()):
                continue
            try:
                results = self._run(jobs[0].kind, [job.row for job in jobs])
            except Exception as error:  # a program failed: those in hand are told
                for job in jobs:
                    job.future.set_exception(error)
                continue
            for job, result in zip(jobs, results, strict=True):
                job.future.set_result(result)


class TokenRows:
    """Texts of ids through one function of a model.

    Args:
        function: (parameters, int tokens [R, T], int lengths [R]) -> a tree of arrays whose first dim is R.
        length: of the longest text.
        pad: id that fills a row.
    """

    def __init__(self, function: Callable[..., Any], params: Any, mesh: Mesh, *, length: int, queue: int, pad: int = 0):
        self._params, self._mesh, self._pad = params, mesh, pad
        sizes = [_LEAST * _STEP**n for n in range(32) if _LEAST * _STEP**n < length]
        self.lengths = [*sizes, length]
        self.rows = _ROWS * batch_shards(mesh.shape)
        self._program = jit(function, platform_of(mesh))
        self._batcher = Batcher(self._run, self.rows, queue)

    def compile(self) -> None:
        """Compiles the program for each length, and runs it once."""
        for length in self.lengths:
            self._run(length, [(0,)])

    async def ask(self, ids: Sequence[int]) -> Any:
        """The text's part of what the function gives, as numpy arrays without the first dim."""
        return await self._batcher.ask(next(length for length in self.lengths if length >= len(ids)), ids)

    def swap(self, params: Any) -> None:
        """Goes on with other parameters of the same shapes."""
        self._params = params

    def close(self) -> None:
        self._batcher.close()

    def _run(self, length: int, texts: list[Sequence[int]]) -> list[Any]:
        tokens_RT, num_R = np.full((self.rows, length), self._pad, np.int32), np.ones(self.rows, np.int32)
        for row, ids in enumerate(texts):
            tokens_RT[row, : len(ids)], num_R[row] = ids, len(ids)
        tokens = put_rows(tokens_RT, array_sharding("inputs", tokens_RT.shape, self._mesh))
        lengths = put_rows(num_R, sharding_of(("batch",), self._mesh))
        with jax.set_mesh(self._mesh):
            found = jax.tree.map(np.asarray, self._program(self._params, tokens, lengths))
        return [jax.tree.map(lambda x, row=row: x[row], found) for row in range(len(texts))]
