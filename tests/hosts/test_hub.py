"""Process 0's end of the line, against processes that are threads and against strangers."""

import json
import socket
import threading

import pytest

from lmkit.config.sections.hosts import TOKEN, USER_ERROR, HostsConfig
from lmkit.hosts import hub as hub_module
from lmkit.hosts.hub import Hub
from lmkit.hosts.line import Joined, NotJoined, Process, encode, join, proof

QUICK = HostsConfig(start_timeout_sec=20, heartbeat_timeout_sec=4)


class Job:
    """A hub, and processes that have joined it."""

    def __init__(self, num: int, config: HostsConfig = QUICK):
        listener = socket.create_server(("127.0.0.1", 0))
        self.address, self.num, self.config = listener.getsockname(), num, config
        self.own, other = socket.socketpair()
        self.hub = Hub(listener, other, num, config, [])
        self.hub.start()
        self.came: dict[int, Joined | NotJoined] = {}

    def start(self, number: int, num: int = 0) -> threading.Thread:
        def run() -> None:
            process = Process(f"127.0.0.1:{self.address[1]}", num or self.num, number)
            try:
                self.came[number] = join(process, self.config, None if number else self.own)
            except NotJoined as error:
                self.came[number] = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def stranger(self, sent: bytes) -> bytes:
        """What a connection that says this hears until it is closed."""
        with socket.create_connection(self.address, timeout=10) as sock:
            heard = sock.recv(4096)
            sock.sendall(sent)
            while data := sock.recv(4096):
                heard += data
        return heard


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "the job's")


STRANGERS = {
    "of before": encode({"here": 1, "name": "anyone", "num": 99}),
    "a browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "not a dictionary": b"[1]\n",
    "no JSON": b"\xff\xfe{}\n",
    "nested": b"[" * 10_000 + b"\n",
    "endless": b"x" * (1 << 15),
    "wrong types": encode({"here": [], "name": 1, "num": {}, "challenge": 1, "proof": None}),
    "wrong proof": encode({"here": 1, "name": "x", "num": 2, "challenge": "", "proof": proof("", "process 1")}),
    "verdict": encode({"failed": 1, "text": "the end"}),
}


@pytest.mark.parametrize("kind", list(STRANGERS))
def test_a_stranger_is_dropped_and_counted_and_the_job_comes_together(kind: str) -> None:
    """Before, its first words ended all processes."""
    job = Job(2)
    zero = job.start(0)
    heard = job.stranger(STRANGERS[kind])
    assert list(json.loads(heard)) == ["challenge"]
    one = job.start(1)
    zero.join(10)
    one.join(10)
    assert [len(joined.names) for joined in job.came.values() if isinstance(joined, Joined)] == [2, 2]
    assert job.hub.strangers == 1


def test_who_says_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_HELLO_SEC", 0.1)
    job = Job(2)
    assert list(json.loads(job.stranger(b""))) == ["challenge"]
    assert job.hub.strangers == 1


def test_a_process_of_another_job_does_not_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(2, HostsConfig(start_timeout_sec=1, heartbeat_timeout_sec=2))
    zero = job.start(0)
    with socket.create_connection(job.address, timeout=10) as sock:
        challenge = json.loads(sock.recv(4096))["challenge"]
        monkeypatch.setenv(TOKEN, "another")
        answer = proof(challenge, "process 1")
        monkeypatch.setenv(TOKEN, "the job's")
        sock.sendall(encode({"here": 1, "name": "x", "num": 2, "challenge": "", "proof": answer}))
        assert sock.recv(4096) == b""
    zero.join(10)
    (ended,) = job.came.values()
    assert isinstance(ended, NotJoined)
    assert "1 connections were not of this job (LMKIT_JOB_TOKEN is another one there)" in str(ended)


def test_a_process_does_not_believe_another_jobs_process_0() -> None:
    def answer() -> None:
        while True:
            sock, _ = listener.accept()
            sock.sendall(encode({"challenge": "x"}))
            sock.recv(4096)
            sock.sendall(encode({"end": 1, "text": "stop", "proof": "0" * 64}))
            sock.close()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=answer, daemon=True).start()
    process = Process(f"127.0.0.1:{listener.getsockname()[1]}", 2, 1)
    with pytest.raises(NotJoined, match="what answers there does not have the LMKIT_JOB_TOKEN of this job"):
        join(process, HostsConfig(start_timeout_sec=1, heartbeat_timeout_sec=2), None)


def test_without_a_token_processes_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN)
    job = Job(2)
    for thread in (job.start(0), job.start(1)):
        thread.join(10)
    assert all(isinstance(one, Joined) for one in job.came.values())


def test_one_that_was_started_otherwise_ends_all_with_a_word() -> None:
    job = Job(2)
    for thread in (job.start(0), job.start(1, num=3)):
        thread.join(10)
    for ended in job.came.values():
        assert isinstance(ended, NotJoined)
        assert ended.status == USER_ERROR
        assert "was started as one of 3, process 0 as one of 2" in str(ended)
