"""hosts.local: the same command as several processes on this machine, looked after by the one that was started."""

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import IO

from lmkit.config.base import ConfigError
from lmkit.config.sections.hosts import LOCAL, LOST, TOKEN, HostsConfig

_SLACK_SEC = 5.0
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_local(verb: str, argv: list[str], hosts: HostsConfig) -> int:
    """Runs the verb as `hosts.local` processes; returns the first status that is not 0, or 0.

    Process 0 has the terminal; what the others say is passed on to stderr with their number before it. Signals that ask
    to stop go to all of them. Raises ConfigError in a sweep.
    """
    if {"-m", "--multirun"} & set(argv):
        raise ConfigError(f"hosts.local={hosts.local} in a sweep: run its jobs one by one, or leave hosts.local out")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    command = [sys.executable, "-m", f"lmkit.{verb}", *argv]
    children: list[subprocess.Popen] = []
    asked: list[int] = []
    token = secrets.token_hex(16)

    def forward(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED if not _ignored(number)}
    try:
        for number in range(hosts.local):
            children.append(_start(command, {LOCAL: f"{number} {port}", TOKEN: token}, number, libc))
        pumps = [
            threading.Thread(target=_pass_on, args=(child.stdout, f"[{number}] "), daemon=True)
            for number, child in enumerate(children[1:], 1)
        ]
        for pump in pumps:
            pump.start()
        status = _wait(children, hosts.heartbeat_timeout_sec + hosts.shutdown_timeout_sec + _SLACK_SEC)
        for pump in pumps:
            pump.join(_SLACK_SEC)
    finally:
        for child in children:
            child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + signal.SIGINT if status and asked[:1] == [signal.SIGINT] else status


def _ignored(number: signal.Signals) -> bool:
    """Whether nohup has asked for that."""
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _start(command: list[str], env: dict[str, str], number: int, libc: ctypes.CDLL | None) -> subprocess.Popen:
    first = number == 0
    return subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=None if first else subprocess.PIPE,
        stderr=None if first else subprocess.STDOUT,
        process_group=0,  # Ctrl-C comes to this process alone, and is passed on once
        preexec_fn=(lambda: libc.prctl(1, signal.SIGKILL)) if libc else None,  # PR_SET_PDEATHSIG: none outlives it
    )


_said: set[bytes] = set()


def _pass_on(lines: IO[bytes], prefix: str) -> None:
    """Lines to stderr; the reason for which all of them end is told by one."""
    for line in lines:
        if line.startswith(b"lmkit."):
            if line in _said:
                continue
            _said.add(line)
        sys.stderr.write(prefix + line.decode(errors="replace"))
        sys.stderr.flush()


def _wait(children: list[subprocess.Popen], patience_sec: float) -> int:
    """Until all have ended; once one has failed, the others are given so long."""
    first_bad, deadline = 0, float("inf")
    waiting = list(children)
    while waiting:
        for child in [one for one in waiting if one.poll() is not None]:
            waiting.remove(child)
            if child.returncode and not first_bad:
                first_bad = child.returncode if child.returncode > 0 else LOST
                deadline = time.monotonic() + patience_sec
        if time.monotonic() > deadline:
            for child in waiting:
                child.kill()
        time.sleep(0.02)
    return first_bad
