"""How far this process is, and whether it should be further."""

import contextlib
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lmkit.config.sections.hosts import HostsConfig

_STEPS = 101  # whose median is taken
_FIRST = 3  # steps without a median: the first ones fill caches
_LIBRARY = str(Path(__file__).resolve().parents[1])


class Watchdog:
    """Steps started and ended, and for how long none has ended.

    Its time stands still while the whole process does (SIGSTOP, a sleeping laptop): `report` counts no more than
    `_GAP_SEC` between two calls of itself.
    """

    _GAP_SEC = 5.0

    def __init__(self, config: HostsConfig, clock: Callable[[], float] = time.monotonic):
        self._config, self._clock = config, clock
        self._lock = threading.Lock()
        self._times: deque[float] = deque(maxlen=_STEPS)
        self._started = self._ended = 0
        self._doing, self._armed = "preparing", False  # what is no step; "" in a step
        self._since = self._seen = clock()
        self._last: float | None = None  # when the last step ended, where nothing else came between

    def arm(self) -> None:
        """From now on there is a limit. Preparing data has none: it may take hours."""
        with self._lock:
            self._armed, self._doing, self._since = True, "compiling", self._clock()

    def started(self, step: int) -> None:
        """A step has its batch and is about to be dispatched."""
        self._started = step

    def ended(self, step: int) -> None:
        """A step's metrics have arrived."""
        with self._lock:
            now = self._clock()
            if self._last is not None:
                self._times.append(now - self._last)
            self._ended, self._last, self._since, self._doing = step, now, now, ""

    @contextlib.contextmanager
    def pause(self, doing: str) -> Iterator[None]:
        """What is no step: an evaluation, a save. It has a limit of its own, and is left out of the median.

        Where `progressed` is called on the way, the limit is from one call to the next.
        """
        with self._lock:
            self._doing, self._since, self._last = doing, self._clock(), None
        yield
        with self._lock:
            self._doing, self._since = "", self._clock()

    def progressed(self) -> None:
        """A batch of an evaluation has come back: its limit counts from here."""
        with self._lock:
            self._since = self._clock()

    def limit(self) -> float:
        """Seconds that what is being done may take; 0 where there is no limit."""
        if not (self._config.stall_factor and self._armed):
            return 0.0
        if self._doing or len(self._times) < _FIRST:
            return self._config.stall_pause_sec
        return max(self._config.stall_factor * statistics.median(self._times), self._config.stall_min_sec)

    def report(self) -> dict[str, Any]:
        """Steps started and ended, what is being done instead, for how long, and what it may take."""
        with self._lock:
            now = self._clock()
            if (gap := now - max(self._seen, self._since) - self._GAP_SEC) > 0:
                self._since += gap
            self._seen = now
            return {
                "started": self._started, "ended": self._ended, "doing": self._doing, "sec": now - self._since,
                "limit": self.limit(),
            }  # fmt: skip


def stacks() -> str:
    """The Python stacks of all threads, the main one last."""
    main, names = threading.main_thread().ident, {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] == main)
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames
    )


def where() -> str:
    """The innermost line of lmkit that the main thread is in, and what it has called."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = traceback.extract_stack(frame)
    ours = next((one for one in reversed(stack) if one.filename.startswith(_LIBRARY)), stack[-1])
    inner = "" if ours is stack[-1] else f" > {stack[-1].name} ({Path(stack[-1].filename).name}:{stack[-1].lineno})"
    return f"{ours.name} ({Path(ours.filename).name}:{ours.lineno}){inner}"
