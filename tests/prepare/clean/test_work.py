"""The folder of a corpus in the making: one process at a time."""

import errno
import fcntl
import shutil
import threading
import time
from pathlib import Path

import pytest

from lmkit.config import ConfigError
from lmkit.prepare.clean.work import claimed


def test_who_finds_another_at_work_waits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Before, the second of two jobs that began together ended with an error."""
    deadline = time.monotonic() + 30
    out, waited = tmp_path / "out", threading.Event()

    def second() -> None:
        with claimed(out, {}):
            waited.set()

    thread = threading.Thread(target=second, daemon=True)
    with claimed(out, {}) as work:
        thread.start()
        while "waiting for it" not in capsys.readouterr().out:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not waited.is_set()
        shutil.rmtree(work)  # as it ends
    thread.join(30)
    assert waited.is_set()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(ConfigError, match=r"out is on a file system without locks: set prepare.out="),
        claimed(tmp_path / "out", {}),
    ):
        pass
