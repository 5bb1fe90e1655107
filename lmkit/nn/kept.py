"""What layers hand out beside the stream, from the stack to whoever asked for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

Sums = dict[str, jax.Array]  # sums over tokens, by name; {} of a block that hands nothing out

_asked: ContextVar[list[Sums] | None] = ContextVar("kept", default=None)


@contextmanager
def collecting() -> Iterator[list[Sums]]:
    """A list that gets the sums [L, ...] of every stack that runs in the block, in the order in which they run.

    Open it and read it in one trace: inside what is differentiated, not around it.
    """
    token = _asked.set([])
    try:
        yield _asked.get()  # type: ignore[misc]
    finally:
        _asked.reset(token)


def hand_out(kept: Sums) -> None:
    """A stack's sums [L, ...], for whoever collects them; nobody may."""
    if kept and (asked := _asked.get()) is not None:
        asked.append(kept)
