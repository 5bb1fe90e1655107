"""Signals that ask a run to stop."""

import os
import signal
from collections.abc import Iterator

import pytest

from lmkit.train.stop import STATUS, Stop


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STATUS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGUSR1, 75)],
)
def test_a_signal_is_noted_and_the_step_ends(number: signal.Signals, status: int) -> None:
    ours = signal.signal(number, signal.SIG_DFL)  # nohup may have taken SIGHUP
    before = signal.getsignal(number)
    with Stop() as stop:
        assert not stop.asked(1)
        os.kill(os.getpid(), number)
        assert stop.asked(1)
    assert (stop.signal, stop.status) == (number, status)
    assert signal.getsignal(number) is before
    signal.signal(number, ours)


def test_what_nohup_ignores_stays_ignored_and_a_launchers_signal_stays_its_own() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    heard = []
    signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    with Stop() as stop:
        for number in (signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert not stop.asked(1)
    assert heard == [signal.SIGUSR1]
