"""The threads that write a checkpoint, where the cores that they run on are the device."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NICE = 10  # a tenth of a core's time where a step wants all of it
_WRITERS = "ts_pool_worker"  # TensorStore's threads; they end when they have been idle for a while
_LOOK_SEC = 0.05


@contextmanager
def giving_way() -> Iterator[None]:
    """What this thread does in the block, and TensorStore's threads for it, gets what others leave of the cores.

    On Linux alone; a thread's priority stays low, since nobody may raise it again.
    """
    if sys.platform != "linux":
        yield
        return
    _lower(threading.get_native_id())
    ended = threading.Event()
    looking = threading.Thread(target=_look, args=(ended,), daemon=True)  # it inherits the priority
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()


def _look(ended: threading.Event) -> None:
    """Writers come as they are needed."""
    seen: set[str] = set()
    while True:
        for thread in set(os.listdir("/proc/self/task")) - seen:
            seen.add(thread)
            with suppress(OSError):  # it has ended
                if Path(f"/proc/self/task/{thread}/comm").read_text().strip() == _WRITERS:
                    _lower(int(thread))
        if ended.wait(_LOOK_SEC):
            return


def _lower(thread: int) -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICE, os.getpriority(os.PRIO_PROCESS, thread)))
