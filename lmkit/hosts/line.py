"""A process's end of its line to process 0 (hub.py): what it says, hears, and how it ends."""

import contextlib
import hmac
import json
import os
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from lmkit.config.sections.hosts import GONE, LOST, TOKEN, HostsConfig, local_process
from lmkit.hosts.watchdog import Watchdog, stacks, where

_RETRY_SEC = 0.1
LONGEST = 1 << 24  # bytes of a message


class Process(NamedTuple):
    """Where this process is among all."""

    coordinator: str  # host:port of process 0
    num: int
    id: int
    nodes: list[str] = []  # noqa: RUF012  # names of the job's machines, where a scheduler tells


class Line:
    """The line to process 0, with a thread that listens and one that tells how far this process is."""

    def __init__(self, joined: "Joined", process: Process, config: HostsConfig, verb: str, watch: Watchdog):
        self.process, self.names, self.watch = process, joined.names, watch
        self._sock, self._rest, self._config, self._verb = joined.sock, joined.rest, config, verb
        self._lock = threading.Lock()
        self._answers: queue.Queue[list[str]] = queue.Queue()
        self._round = 0
        self._verdict = threading.Event()
        self._status = LOST
        self._unwinding = self._leaving = False
        self._sock.settimeout(config.heartbeat_timeout_sec)
        for name, target in (("listen", self._listen), ("pulse", self._pulse)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def gather(self, label: str, text: str) -> list[str]:
        """A text of every process, in their order; returns when all have given theirs."""
        self._round += 1
        self._send(gather=self._round, label=label, text=text)
        return self._answers.get()

    def report_failure(self, status: int, text: str) -> None:
        """Tells the others that this process has failed and is about to end."""
        if not self._unwinding:
            self._unwinding = True
            self._send(failed=status, text=text)

    def exit_with_job(self, status: int, text: str, trace: str) -> NoReturn:
        """Ends this process, and all, once it is known whose fault it was; the trace is shown where it may help."""
        self.report_failure(status, text)
        if not self._verdict.wait(self._config.heartbeat_timeout_sec):
            self._status = status
            self._print_reason(text)
        if self._status == 1 or os.environ.get("LMKIT_DEBUG") == "1":
            sys.stderr.write(trace)
        self._flush()
        os._exit(self._status)

    def finish(self) -> None:
        """From now on the others may end, too."""
        self._leaving = True
        self._send(leaving=1)

    def _send(self, **message: Any) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._sock.sendall(encode(message))

    def _messages(self) -> Iterator[dict[str, Any]]:
        """What the hub says, until the line is cut. Raises TimeoutError where it is silent."""
        buffer = self._rest
        while True:
            *lines, buffer = buffer.split(b"\n")
            yield from map(json.loads, lines)
            try:
                data = self._sock.recv(1 << 16)
            except TimeoutError:
                raise
            except OSError:
                return
            if not data:
                return
            buffer += data

    def _listen(self) -> None:
        how = GONE
        try:
            for message in self._messages():
                if "gathered" in message:
                    self._answers.put(message["gathered"])
                elif "dump" in message:
                    sys.stderr.write(f"process {self.process.id} ({process_name()}) is at {where()}\n{stacks()}\n")
                    sys.stderr.flush()
                    self._send(location=where())
                elif "end" in message:
                    return self._exit(message["end"], message["text"])
        except TimeoutError:
            how = f"has been silent for {self._config.heartbeat_timeout_sec:g} s"
        if not self._leaving:
            self._exit(
                LOST,
                f"process 0 ({self.names[0]}) {how}; the last step here was {self.watch.report()['ended']}",
                lost=True,
            )

    def _pulse(self) -> None:
        while not self._leaving:
            self._send(beat=self.watch.report())
            time.sleep(self._config.pulse_sec)

    def _exit(self, status: int, text: str, lost: bool = False) -> None:
        """Ends the process: at once where it hangs, later where it is ending by itself."""
        self._status = status
        self._print_reason(text, lost)
        self._verdict.set()
        if self._unwinding:
            time.sleep(self._config.shutdown_timeout_sec)
        self._flush()
        os._exit(status)

    def _print_reason(self, text: str, lost: bool = True) -> None:
        """The reason; of processes on one terminal the first speaks for all, while it lives."""
        if self.process.id == 0 or lost or local_process() is None:
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(2, f"lmkit.{self._verb}: {text}\n".encode())

    def _flush(self) -> None:
        with contextlib.suppress(Exception):
            if sys.stdout.isatty():
                sys.stdout.write("\x1b[?25h")  # a bar hides the cursor
            sys.stdout.flush()
            sys.stderr.flush()


class NotJoined(Exception):
    """The job did not come together. `announced`: process 0 said so, and to all."""

    def __init__(self, status: int, text: str, announced: bool):
        super().__init__(text)
        self.status, self.announced = status, announced


class Joined(NamedTuple):
    """A line that process 0 has taken note of, and what all processes are called."""

    sock: socket.socket
    rest: bytes  # received after that
    names: list[str]


def join(process: Process, config: HostsConfig, own: socket.socket | None) -> Joined:
    """The roll call: returns when all have come. `own` is process 0's; the others connect, again and again.

    What answers may be an earlier job's process 0 that is about to end. Raises NotJoined where the time is up.
    """
    deadline, problem = time.monotonic() + config.start_timeout_sec, ""
    host, _, port = process.coordinator.rpartition(":")
    while True:
        sock = own
        try:
            sock = own or socket.create_connection((host.strip("[]"), int(port)), timeout=5.0)
            if own is None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(max(deadline - time.monotonic(), 0.0) + 5.0)  # the hub speaks before
            return _introduce(sock, process)
        except (OSError, ValueError, KeyError, TypeError) as error:  # also of what is no process 0 of ours
            problem = str(error)
            if sock is not None and own is None:
                sock.close()
        if time.monotonic() > deadline:
            raise NotJoined(
                LOST,
                f"process {process.id} ({process_name()}) did not reach process 0 at {process.coordinator} within "
                f"hosts.start_timeout_sec={config.start_timeout_sec:g} ({problem}): it did not start, its name or port "
                f"is not the right one, or its {TOKEN} is another",
                announced=False,
            )
        time.sleep(_RETRY_SEC)


def _introduce(sock: socket.socket, process: Process) -> Joined:
    """Each end proves to the other that it has the job's token, without saying it; then waits until all have come."""
    challenge, buffer = _receive(sock, b"")
    mine = secrets.token_hex(16)
    hello = {"here": process.id, "name": process_name(), "num": process.num, "challenge": mine}
    sock.sendall(encode(hello | {"proof": proof(challenge["challenge"], f"process {process.id}")}))
    message, rest = _receive(sock, buffer)
    if not hmac.compare_digest(message["proof"], proof(mine, "process 0 to all")):
        raise ConnectionError(f"what answers there does not have the {TOKEN} of this job")
    if "end" in message:
        raise NotJoined(message["end"], message["text"], announced=True)
    return Joined(sock, rest, message["go"])


def _receive(sock: socket.socket, buffer: bytes) -> tuple[dict[str, Any], bytes]:
    """The next message, and what came after it."""
    while b"\n" not in buffer:
        if not (data := sock.recv(1 << 16)) or len(buffer) > LONGEST:
            raise ConnectionError("it was there, and closed the connection")
        buffer += data
    line, _, rest = buffer.partition(b"\n")
    return json.loads(line), rest


def proof(challenge: str, who: str) -> str:
    """What only those can answer to a challenge who have the job's token. Without a token anybody can."""
    return hmac.new(os.environ.get(TOKEN, "").encode(), f"{who}: {challenge}".encode(), "sha256").hexdigest()


def encode(message: dict[str, Any]) -> bytes:
    """A message as it goes over a line: JSON, and the end of the line."""
    return json.dumps(message).encode() + b"\n"


def process_name() -> str:
    """What this process is called in messages: its machine and its number there."""
    return f"{socket.gethostname()}, pid {os.getpid()}"
