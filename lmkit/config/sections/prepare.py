"""`prepare`: where the work of preparing data is done."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import Section, key


class Executor(Enum):
    """Who does the work."""

    local = 0  # processes on this machine
    slurm = 1  # arrays of jobs; the folder is one that all nodes see
    ray = 2  # a Ray cluster, or one made here


@dataclass
class PrepareConfig(Section):
    """How a corpus is prepared. What comes out depends on `tasks` alone."""

    section: ClassVar[str] = "prepare"
    changes_results: ClassVar[bool] = False

    executor: Executor = key(Executor.local, "who does the work")
    workers: int = key(0, "tasks at a time; 0 = one a core (slurm: no limit)", at_least=0)
    tasks: int = key(
        0, "pieces of the work and files of the result; 0 = one for 4 MB, at most a file each; where it is more than "
        "there are files, local .jsonl files are divided", at_least=0,
    )  # fmt: skip
    partition: str = key("", "slurm: partition; '' = the cluster's own choice")
    time_limit_minutes: int = key(600, "slurm: limit of a task", at_least=1)
    memory_gb: int = key(2, "slurm, ray: memory of a task", at_least=1)
    sbatch: dict[str, str] = key({}, "slurm: more options of sbatch, such as {account: mine}")
    check: str = key("", "a store to check against its checksums, instead of preparing one")
    out: str = key("", "folder of the cleaned corpus; '' = in the cache")
