"""Many processes: how they find each other, and how long one waits for another."""

import os
from dataclasses import dataclass
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key

# Exit statuses, beside 0, 1 (a bug), 75 and 130 (asked to stop; saved). LOST and STALLED mean "start again".
USER_ERROR = 2  # a mistake that the user can mend
LOST = 76  # another process was lost, or never came
STALLED = 77  # no step ended for too long
GONE = "was lost: killed, crashed, or its machine is gone"
LOCAL = "LMKIT_LOCAL"  # "<id> <port>", set for each process of hosts.local
TOKEN = "LMKIT_JOB_TOKEN"  # a secret that the processes of a job share; lmkit.launch and hosts.local make one


@dataclass
class HostsConfig(Section):
    """The processes of a job, one or more a host. A scheduler's are found without any of these keys."""

    section: ClassVar[str] = "hosts"
    changes_results: ClassVar[bool] = False

    local: int = key(
        0, "start so many processes on this machine, each with run.cpu_devices devices, to try it; 0 = off", at_least=0
    )
    coordinator: str = key("", "host:port of process 0; '' = ask the scheduler")
    num: int = key(0, "processes in all; 0 = ask the scheduler, 1 = this one alone", at_least=0)
    id: int = key(-1, "number of this process, from 0; -1 = ask the scheduler", at_least=-1)
    start_timeout_sec: float = key(300.0, "time in which all processes must have come", at_least=1.0)
    heartbeat_timeout_sec: float = key(
        60.0, "silence after which a process counts as lost; one that is killed is noticed at once", at_least=2.0
    )
    shutdown_timeout_sec: float = key(
        30.0, "time to finish saves and reports once another process is lost, then all end", at_least=1.0
    )
    stall_factor: float = key(20.0, "a step that takes so many medians has stalled: all end; 0 = off", at_least=0.0)
    stall_min_sec: float = key(300.0, "and at least so long", at_least=1.0)
    stall_pause_sec: float = key(
        3600.0, "the limit of what is no step: compiling, a batch of an evaluation, a save", at_least=1.0
    )

    @property
    def pulse_sec(self) -> float:
        """How often a process says that it is there."""
        return min(self.heartbeat_timeout_sec / 4, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name, unset in (("coordinator", ""), ("num", 0), ("id", -1)) if getattr(self, name) != unset]
        if self.local > 1 and given:
            raise ConfigError(
                f"hosts.local={self.local} with hosts.{given[0]}={getattr(self, given[0])}: either this machine's "
                f"processes or those of many; leave one of the two out"
            )
        if self.coordinator and not self.coordinator.rpartition(":")[2].isdigit():
            raise ConfigError(f"hosts.coordinator={self.coordinator}: it is host:port, such as node1:8476")
        if 0 < self.num <= self.id:
            raise ConfigError(f"hosts.id={self.id} with hosts.num={self.num}: ids go from 0 to {self.num - 1}")
        if self.num != 1 and 0 < len(given) < 3 and given != ["coordinator"]:
            missing = ", ".join(f"hosts.{name}" for name in ("coordinator", "num", "id") if name not in given)
            raise ConfigError(f"hosts.{given[0]}={getattr(self, given[0])} needs {missing}, too")


def local_process() -> tuple[int, int] | None:
    """(number, port of process 0) of a process that hosts.local started; None for any other."""
    words = os.environ.get(LOCAL, "").split()
    return (int(words[0]), int(words[1])) if words else None
