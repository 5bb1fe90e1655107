"""Auxiliary outputs: what layers return beside the residual stream, from the stack to the code that asked for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

Auxiliary = dict[str, jax.Array]  # sums over tokens, by name; {} of a block that hands nothing out

_asked: ContextVar[list[Auxiliary] | None] = ContextVar("auxiliary", default=None)


@contextmanager
def collecting() -> Iterator[list[Auxiliary]]:
    """A list that gets the sums [L, ...] of every stack that runs in the block, in the order in which they run.

    Open it and read it in one trace: inside what is differentiated, not around it.
    """
    token = _asked.set([])
    try:
        yield _asked.get()  # type: ignore[misc]
    finally:
        _asked.reset(token)


def emit(auxiliary: Auxiliary) -> None:
    """A stack's sums [L, ...], for whoever collects them; nobody may."""
    if auxiliary and (asked := _asked.get()) is not None:
        asked.append(auxiliary)
