"""The processes of a job: found, called together, announced apart, and ended together.

Alone, everything here is the trivial case: one process, number 0. What the processes tell each other goes over a line
of ours (line.py, hub.py); arrays go over jax.distributed.
"""

import contextlib
import hashlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

from lmkit.config.base import ConfigError
from lmkit.config.entry import explain
from lmkit.config.experiment import differing
from lmkit.config.sections.hosts import USER_ERROR, HostsConfig, local_process
from lmkit.config.sections.run import RunConfig
from lmkit.hosts.cluster import find_process, local_devices
from lmkit.hosts.hub import Hub
from lmkit.hosts.line import Line, NotJoined, Process, join
from lmkit.hosts.watchdog import Watchdog
from lmkit.parallel.devices import setup_jax

T = TypeVar("T")
_lines: list[Line] = []  # none or one
_BACKLOG = 4096  # processes that come at one moment
_ended: list[Process] = []  # of a session that has ended


def count() -> int:
    """How many processes there are."""
    return _lines[0].process.num if _lines else 1


def index() -> int:
    """The number of this one."""
    return _lines[0].process.id if _lines else 0


def is_first() -> bool:
    """Whether this process is the one that writes for all."""
    return index() == 0


def gather(label: str, text: str = "") -> list[str]:
    """A text of every process, in their order. All must call it, in the same order; it waits for the slowest."""
    return _lines[0].gather(label, text) if _lines else [text]


def share(label: str, text: str) -> str:
    """Process 0's text."""
    return gather(label, text if is_first() else "")[0]


def agree(label: str, value: Any) -> None:
    """Raises ConfigError on all where a plain value is not the same on all, naming whose differs, and in what."""
    words = json.dumps(value, sort_keys=True, default=str)
    if len(set(gather(label, hashlib.sha256(words.encode()).hexdigest()))) == 1:
        return
    texts = gather(label, words)
    other = next(number for number, text in enumerate(texts) if text != texts[0])
    rows = differing(json.loads(texts[0]), json.loads(texts[other]))
    shown = ", ".join(f"{name} ({old!r:.60} on process 0, {new!r:.60} there)" for name, old, new in rows[:4])
    raise ConfigError(f"{label} of process {other} ({_lines[0].names[other]}) differs: {shown}; make them the same")


def report_failure(error: BaseException) -> None:
    """Tells the others at once, before anything is tidied up here, which may take its time."""
    if _lines:
        _lines[0].report_failure(*_status_and_reason(error))


def watchdog() -> Watchdog:
    """This process's; alone it is one that nobody asks."""
    return _lines[0].watch if _lines else Watchdog(HostsConfig())


def first_where_shared(
    folder: Path, build: Callable[[], T], tell: Callable[[], str] = str, hear: Callable[[str], None] = lambda _: None
) -> T:
    """Runs `build`, which fills a folder, on one process of those that share the folder, then on the others.

    Process 0 is the one where it is the same folder for all; else the first process of each machine. What it has to
    `tell` afterwards the others `hear` before they build.
    """
    if not _lines:
        return build()
    machines = gather("machines", socket.gethostname())
    leader = machines.index(machines[index()])
    if _sees_the_same(folder):
        leader = 0
    result = build() if leader == index() else None
    told = gather("built", tell() if leader == index() else "")
    if result is not None:
        return result
    hear(told[leader])
    return build()


def _sees_the_same(folder: Path) -> bool:
    """Whether this folder is the one that process 0 has under this name."""
    word = share("word", os.urandom(8).hex())
    mark = folder / f".same-{word}"
    if is_first():
        with contextlib.suppress(OSError):  # who fills it will say what is wrong
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
    gather("marked")
    with contextlib.suppress(OSError):
        os.listdir(folder)  # makes a network file system look again
    same = mark.exists()
    gather("looked")
    if is_first():
        mark.unlink(missing_ok=True)
    return same


def check_shared(name: str, folder: Path) -> None:
    """Raises ConfigError on all where a folder is not the same one on all, naming those that have another."""
    seen = gather(name, "same" if _sees_the_same(folder) else "other") if _lines else []
    if others := [number for number, one in enumerate(seen) if one == "other"]:
        named = ", ".join(f"{number} ({_lines[0].names[number]})" for number in others[:8])
        raise ConfigError(
            f"{name}={folder} is another folder on process {named} than on process 0: checkpoints are written by all; "
            f"choose one that all share (a network file system or a mounted bucket)"
        )


@contextlib.contextmanager
def session(hosts: HostsConfig, run: RunConfig, verb: str) -> Iterator[None]:
    """Sets jax up and calls the processes together; inside it, all go on together or end together.

    An exception inside ends this process and all others with one message and one status; it does not come out of here.
    Alone it does.
    """
    process = find_process(hosts, os.environ)
    if process is None or _lines:
        setup_jax(run)
        yield
        return
    if _ended:
        raise ConfigError(f"a sweep on {process.num} processes: jax calls them together once; run its jobs one by one")
    line = _connect(process, hosts, verb)
    _lines.append(line)
    try:
        setup_jax(run)
        address: Any = {"coordinator_bind_address": process.coordinator} if _is_loopback(process.coordinator) else {}
        jax.distributed.initialize(
            process.coordinator, process.num, process.id, local_device_ids=local_devices(os.environ),
            cluster_detection_method="deactivate",  # it would give a Slurm task one GPU of eight
            initialization_timeout=int(hosts.start_timeout_sec),
            heartbeat_timeout_seconds=int(2 * hosts.heartbeat_timeout_sec),  # ours comes first, and names names
            shutdown_timeout_seconds=int(hosts.shutdown_timeout_sec), **address,
        )  # fmt: skip
        yield
        gather("end")
        line.finish()
        jax.distributed.shutdown()
    except BaseException as error:
        line.exit_with_job(*_status_and_reason(error), trace=traceback.format_exc())
    finally:
        _ended.append(process)
        _lines.clear()


def _status_and_reason(error: BaseException) -> tuple[int, str]:
    """The status and the line for an exception."""
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped"
    message = explain(error)
    if message is not None:
        return USER_ERROR, message
    return 1, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _connect(process: Process, hosts: HostsConfig, verb: str) -> Line:
    """The roll call. Ends the process where somebody is missing."""
    own = None
    if process.id == 0:
        own, other = socket.socketpair()
        Hub(_listen(process.coordinator), other, process.num, hosts, process.nodes).start()
    try:
        return Line(join(process, hosts, own), process, hosts, verb, Watchdog(hosts))
    except NotJoined as error:
        if process.id == 0 or local_process() is None or not error.announced:
            print(f"lmkit.{verb}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.status)


def _listen(coordinator: str) -> socket.socket:
    """Listens at the coordinator's port, which JAX's service takes over once nobody listens there.

    Not shared with another listener (SO_REUSEPORT): the processes of two jobs would mix.
    """
    host, _, port = coordinator.rpartition(":")
    six = socket.has_dualstack_ipv6() and not _is_loopback(coordinator)
    address = ("127.0.0.1" if _is_loopback(coordinator) else "", int(port))
    try:
        if six:
            return socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
        return socket.create_server(address, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen at port {port} of {host}: {error.strerror}; another job may run here: choose "
            f"another port with hosts.coordinator="
        ) from error


def _is_loopback(coordinator: str) -> bool:
    return coordinator.rpartition(":")[0] in ("127.0.0.1", "localhost")
