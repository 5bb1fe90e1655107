"""Being asked to stop: Ctrl-C, SIGTERM, SIGHUP (the terminal was closed) or SIGUSR1 (as schedulers are told to send)
finish the step in hand, save, and end; a second Ctrl-C ends at once."""

import os
import signal

from jax.experimental import multihost_utils

from lmkit import hosts

# 75 (EX_TEMPFAIL) lets a scheduler requeue
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGUSR1: 75}
_UNLESS_TAKEN = (signal.SIGHUP, signal.SIGUSR1)  # nohup has the first ignored, a launcher may want the second


class Stop:
    """Collects the first signal while in its `with` block.

    Of many processes any one may get it: jax's service, which has the SIGTERM, finds a step that none has passed, and
    all stop there. It leaves no second signal to be heard.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._many = hosts.count() > 1
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stop":
        for number in STATUS:
            if self._many and number is signal.SIGTERM:
                continue
            if number in _UNLESS_TAKEN and signal.getsignal(number) is not signal.SIG_DFL:
                continue
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _frame) -> None:
        for other, handler in self._before.items():
            signal.signal(other, handler)  # type: ignore[arg-type]
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.signal = signal.Signals(number)

    def asked(self, step: int) -> bool:
        """Whether to stop before this step: to be asked at every one, in their order."""
        if self._many and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    @property
    def status(self) -> int:
        """The exit status that tells what happened."""
        return STATUS[self.signal] if self.signal is not None else 0
