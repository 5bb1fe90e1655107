"""The console: what cannot be shown ends nothing."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

BROKEN_PIPE = 141  # as a shell counts SIGPIPE


class Patient:
    """A stream that drops what it cannot write: its reader is gone, its terminal closed, its disk full."""

    def __init__(self, inner: TextIO):
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, text: str) -> int:
        try:
            return self.inner.write(text)
        except OSError:
            silence(self.inner)
            return len(text)

    def flush(self) -> None:
        try:
            self.inner.flush()
        except OSError:
            silence(self.inner)


def silence(stream: TextIO) -> None:
    """What is still to be written to it goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def showing(*, patient: bool = False) -> Iterator[None]:
    """Characters that the console does not have are shown as escapes. `patient`: the work goes on without a console.

    Not so for verbs whose product is what they print.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")
    if patient:
        sys.stdout, sys.stderr = (one and Patient(one) for one in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr) if patient else ():
            if isinstance(stream, Patient):
                stream.flush()
        sys.stdout, sys.stderr = before
