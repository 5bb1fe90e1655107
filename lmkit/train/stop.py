"""Being asked to stop: Ctrl-C or SIGTERM finish the step in hand, save, and end; a second one ends at once."""

import signal

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 75}  # 75 (EX_TEMPFAIL) lets a scheduler requeue


class Stop:
    """Collects the first signal while in its `with` block."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stop":
        for number in STATUS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _frame) -> None:
        self.signal = signal.Signals(number)
        for other, handler in self._before.items():
            signal.signal(other, handler)  # type: ignore[arg-type]

    @property
    def status(self) -> int:
        """The exit status that tells what happened."""
        return STATUS[self.signal] if self.signal is not None else 0
