"""Process 0's end of the lines between the processes of a job: who is there, how far each is, and why all end.

JSON objects, a line each, from and to every process, this one included. It stands beside jax.distributed, which knows
the dead by their silence, by number alone, and ends a process with abort(); a closed socket tells of a death at once.

The port is the coordinator's: when all have come it is given back to JAX's service; the connections stay. Who cannot
answer the challenge with the job's token is dropped and counted.
"""

import contextlib
import hmac
import json
import math
import secrets
import selectors
import socket
import threading
import time
from typing import Any

from lmkit.config.sections.hosts import GONE, LOST, STALLED, TOKEN, USER_ERROR, HostsConfig
from lmkit.hosts.line import LONGEST, encode, proof

_TICK_SEC = 0.1
_WINDOW_SEC = 1.0  # from the first bad news to the verdict: the news of one death come from several sides
_STACKS_SEC = 5.0
_HELLO_SEC, _HELLO_BYTES = 10.0, 1 << 14  # in which a process says who it is, after it was asked


class Member:
    """A connection, and since it has said `here` the process behind it."""

    def __init__(self, sock: socket.socket):
        self.sock, self.buffer, self.id, self.name = sock, b"", -1, "?"
        self.since = self.heard = time.monotonic()
        self.challenge, self.proof = secrets.token_hex(16), ""  # ours to it; our answer to its own
        self.progress: dict[str, Any] = {"started": 0, "ended": 0}
        self.failure: tuple[int, str] | None = None
        self.location = ""  # where its main thread is, once asked
        self.gone = False

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(encode(message))

    def __str__(self) -> str:
        return f"process {self.id} ({self.name})"


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except RecursionError:
        message = None
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message


class Hub:
    """Gathers, watches, and speaks the verdict, in a thread of process 0 that ends with it.

    Args:
        listener: where the others come to.
        own: this process's end of a pair.
        nodes: names of the machines of the job, where a scheduler tells.
    """

    def __init__(self, listener: socket.socket, own: socket.socket, num: int, config: HostsConfig, nodes: list[str]):
        self._listener: socket.socket | None = listener
        self._num, self._config, self._nodes = num, config, nodes
        self._members: dict[int, Member] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._add(own).since = math.inf  # it is no stranger, however long it takes
        self._rounds: dict[int, dict[int, tuple[str, str]]] = {}
        self._lost: dict[int, str] = {}
        self._failed: list[Member] = []  # in the order in which they said so
        self._deadline = time.monotonic() + config.start_timeout_sec
        self._verdict_at = self._stalled_at = 0.0
        self._beat = self._looked = time.monotonic()
        self._over = self._leaving = False
        self.strangers = 0  # connections that were not of this job

    def start(self) -> None:
        threading.Thread(target=self._run, name="hub", daemon=True).start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(_TICK_SEC):
                if key.data is None:
                    with contextlib.suppress(OSError):
                        self._add(key.fileobj.accept()[0])  # type: ignore[union-attr]
                else:
                    self._read(key.data)
            self._check(time.monotonic())

    def _add(self, sock: socket.socket) -> Member:
        sock.settimeout(5.0)  # of sending: words are few, a buffer that is full is that of a machine that is gone
        self._selector.register(sock, selectors.EVENT_READ, member := Member(sock))
        member.send(challenge=member.challenge)
        return member

    def _read(self, member: Member) -> None:
        try:
            data = member.sock.recv(1 << 16)
        except OSError:
            data = b""
        member.heard = time.monotonic()
        *lines, member.buffer = (member.buffer + data).split(b"\n")
        try:
            for line in lines:
                self._handle(member, _message(line))
        except (ValueError, TypeError, KeyError):  # no words of ours
            data = b""
        if not data or len(member.buffer) > (LONGEST if member.proof else _HELLO_BYTES):
            self._drop(member)

    def _drop(self, member: Member) -> None:
        if member.sock.fileno() < 0:
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(member.sock)
        self.strangers += not member.proof
        member.sock.close()
        if member.gone or self._members.get(member.id) is not member:
            return
        member.gone = True
        if self._listener is not None:  # not begun: it may come again
            del self._members[member.id]
        elif not self._leaving:
            self._mark_lost(member, GONE)

    def _mark_lost(self, member: Member, how: str) -> None:
        self._lost.setdefault(member.id, how)
        self._verdict_at = self._verdict_at or time.monotonic() + _WINDOW_SEC

    def _handle(self, member: Member, message: dict[str, Any]) -> None:
        if not member.proof:
            self._register(member, message)
        elif self._members.get(member.id) is not member:
            return
        elif "beat" in message:
            member.progress = message["beat"]
            if 0 < member.progress["limit"] < member.progress["sec"] and not self._over:
                self._request_stacks()
        elif "gather" in message:
            self._gather(member, message)
        elif "failed" in message:
            if member.failure is None:
                member.failure = message["failed"], message["text"]
                self._failed.append(member)
            self._verdict_at = self._verdict_at or time.monotonic() + _WINDOW_SEC
            if all(one.failure or one.gone for one in self._members.values()):
                self._verdict_at = time.monotonic()
        elif "location" in message:
            member.location = message["location"]
        elif "leaving" in message:
            self._leaving = True

    def _register(self, member: Member, message: dict[str, Any]) -> None:
        number, num = message["here"], message["num"]
        answer = proof(member.challenge, f"process {number}")
        if self._listener is None or not hmac.compare_digest(message["proof"], answer):
            raise ValueError("a stranger")
        member.proof = proof(message["challenge"], "process 0 to all")
        member.id, member.name = int(number), str(message["name"])
        if num != self._num or not 0 <= member.id < num:
            return self._end(
                USER_ERROR,
                f"process {member.id} ({member.name}) was started as one of {num}, process 0 as one of {self._num}",
            )
        if (other := self._members.get(member.id)) is not None:
            return self._end(
                USER_ERROR, f"two processes say that they are number {member.id}: {other.name} and {member.name}; "
                f"give each its own hosts.id"
            )  # fmt: skip
        self._members[member.id] = member
        if len(self._members) == self._num:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
            self._drop_strangers(math.inf)
            names = [self._members[number].name for number in range(self._num)]
            for one in self._members.values():
                one.heard = time.monotonic()
                one.send(go=names, proof=one.proof)
        return None

    def _gather(self, member: Member, message: dict[str, Any]) -> None:
        texts = self._rounds.setdefault(message["gather"], {})
        texts[member.id] = (message["label"], message["text"])
        if len(texts) < self._num:
            return
        del self._rounds[message["gather"]]
        labels = {number: label for number, (label, _) in sorted(texts.items())}
        if len(set(labels.values())) > 1:
            self._end(1, f"the processes are out of step, a bug: {labels}")
        else:
            for one in self._members.values():
                one.send(gathered=[texts[number][1] for number in range(self._num)])

    def _check(self, now: float) -> None:
        """What only time tells."""
        gap, self._looked = now - self._looked, now
        if gap > 10 * _TICK_SEC:  # this process itself stood still: nobody could be heard
            for member in self._members.values():
                member.heard += gap
        if self._over:
            return
        self._drop_strangers(now - _HELLO_SEC)
        if self._listener is not None and now > self._deadline:
            return self._end(LOST, self._describe_missing())
        if now > self._beat + self._config.pulse_sec:
            self._beat = now
            for member in self._members.values():
                if self._listener is None and not member.gone:
                    member.send(tick=1)
                    if now - member.heard > self._config.heartbeat_timeout_sec and not self._leaving:
                        self._mark_lost(member, f"has been silent for {now - member.heard:.0f} s")
        if self._verdict_at and now >= self._verdict_at:
            self._end(*self._verdict())
        elif self._stalled_at:
            asked = [one for one in self._members.values() if not one.gone]
            if all(one.location for one in asked) or now > self._stalled_at + _STACKS_SEC:
                self._end(STALLED, self._describe_stall())

    def _drop_strangers(self, before: float) -> None:
        for key in list(self._selector.get_map().values()):
            if key.data is not None and not key.data.proof and key.data.since < before:
                self._drop(key.data)

    def _describe_missing(self) -> str:
        missing = [number for number in range(self._num) if number not in self._members]
        here = ", ".join(f"{number} ({member.name})" for number, member in sorted(self._members.items()))
        hosts = {member.name.split(",")[0].split(".")[0] for member in self._members.values()}
        silent = [node for node in self._nodes if node.split(".")[0] not in hosts]
        nodes = f"; nothing came from {', '.join(silent)}" if silent else ""
        if self.strangers:
            nodes += f"; {self.strangers} connections were not of this job ({TOKEN} is another one there)"
        shown = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
        return (
            f"{len(missing)} of {self._num} processes did not come within hosts.start_timeout_sec="
            f"{self._config.start_timeout_sec:g}: number {shown}{nodes}; here are {here}"
        )

    def _verdict(self) -> tuple[int, str]:
        """The status and the reason for which all end."""
        if self._lost:
            number, how = next(iter(self._lost.items()))
            member = self._members[number]
            more = f" (and {len(self._lost) - 1} more)" if len(self._lost) > 1 else ""
            return LOST, f"{member} {how}{more}; its last step was {member.progress['ended']}"
        first, failures = self._failed[0], {one.failure for one in self._failed}
        status, text = first.failure or (LOST, "")
        alike = len(self._failed) == self._num and len(failures) == 1
        return status, text if alike or (first.id == 0 and status == USER_ERROR) else f"{first}: {text}"

    def _request_stacks(self) -> None:
        if not self._stalled_at:
            self._stalled_at = time.monotonic()
            for member in self._members.values():
                member.send(dump=1)

    def _describe_stall(self) -> str:
        def steps_of(member: Member) -> tuple[int, int]:
            return member.progress["started"], member.progress["ended"]

        members = [self._members[number] for number in range(self._num)]
        slowest, fastest = min(map(steps_of, members)), max(map(steps_of, members))
        lagging = [member for member in members if steps_of(member) == slowest != fastest]
        named = ", ".join(map(str, lagging[:8])) or "none is behind the others"
        waited = max(members, key=lambda one: one.progress.get("sec", 0.0)).progress
        doing = waited["doing"] or f"step {waited['ended'] + 1}"
        lines = [f"{doing} has not ended for {waited['sec']:.0f} s (limit {waited['limit']:.0f}); behind: {named}"]
        for member in members:
            started, ended = steps_of(member)
            where = member.location or "gives no answer"
            lines.append(f"  {member}: started step {started}, ended step {ended}, in {where}")
        return "\n".join(lines)

    def _end(self, status: int, text: str) -> None:
        if self._over:
            return
        self._over = True
        keys = [key.data for key in self._selector.get_map().values() if key.data is not None and key.data.proof]
        own_last = sorted(keys, key=lambda member: member.id == 0)
        for member in own_last:
            member.send(end=status, text=text, proof=member.proof)
