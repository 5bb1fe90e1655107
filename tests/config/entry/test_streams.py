"""What cannot be shown ends nothing."""

import errno
import io
import os
import sys
from types import ModuleType

import pytest

from lmkit.config.entry import run_verb
from lmkit.config.entry.streams import BROKEN_PIPE, showing
from lmkit.console import console

WORDS = ["+experiment=gpt_tiny", "run.dir=unused"]


class Gone(io.StringIO):
    """A stream whose reader is gone, or whose terminal was closed."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def talk(_) -> int:
    console.print("a rich line: → 日本")
    print("a plain line: → 日本")
    print("and to stderr", file=sys.stderr)
    return 75


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("talking")
    module.talk = talk  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "talking", module)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_characters_that_a_console_does_not_have_are_shown_as_escapes(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, a run ended at its first sample."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    assert run_verb("train", "talking:talk", "about", WORDS) == 75
    sys.stdout.flush()
    assert out.getvalue().decode(encoding).count(r"\u2192 \u65e5\u672c") == 2


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_run_goes_on_without_a_console(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Gone(number))
    monkeypatch.setattr(sys, "stderr", Gone(number))
    assert run_verb("train", "talking:talk", "about", WORDS) == 75
    assert isinstance(sys.stdout, Gone)  # as it was


def test_a_verb_that_prints_its_product_says_that_it_could_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Gone(errno.EPIPE))
    assert run_verb("launch", "talking:plain", "about", ["--help"]) == BROKEN_PIPE


def test_no_console_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with showing(patient=True):
        print("nobody reads this")
    assert run_verb("train", "talking:talk", "about", WORDS) == 75
