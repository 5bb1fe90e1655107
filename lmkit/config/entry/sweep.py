"""Jobs of a sweep that run elsewhere: how they ended comes back as an exception, for nothing else does.

Hydra's own launcher runs the jobs of a sweep in this process, one after the other. Another one (submitit_slurm, joblib)
pickles the verb's function and sends it off: what it puts into a list stays there.
"""

import sys
import traceback

from lmkit.config.base import UserError


class JobEnded(UserError):
    """A job of a sweep ended with another status than 0. Made of plain values: it travels between processes."""

    def __init__(self, message: str, status: int):
        super().__init__(message, status)
        self.status = status

    def __str__(self) -> str:
        return self.args[0]


def is_elsewhere() -> bool:
    """Whether this is a job of a sweep in a process of its own."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    config = HydraConfig.get()
    return config.mode == RunMode.MULTIRUN and config.runtime.choices.get("hydra/launcher", "basic") != "basic"


def send_back(error: Exception | None, message: str | None, status: int) -> None:
    """Raises what the sweep has to know of a job that did not end with status 0; the job's log gets the rest.

    `message`: what a user can mend, or None where `error` is a bug.
    """
    from hydra.core.hydra_config import HydraConfig

    if error is None and status == 0:
        return
    config = HydraConfig.get()
    job = f"job {config.job.num} ({' '.join(config.overrides.task)})"
    if error is None:
        raise JobEnded(f"{job} ended with status {status}", status)
    if message is None:
        traceback.print_exception(error)
    text = message or f"{type(error).__name__}: {error} (the traceback is in its log)"
    print(f"lmkit: {text}", file=sys.stderr)
    raise JobEnded(f"{job}: {text}", status) from None
