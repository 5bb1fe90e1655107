"""datatrove's executors: a stage of so many tasks, here, on Slurm or on Ray; watched until the last task is done."""

import contextlib
import copy
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from lmkit.config.base import UserError
from lmkit.config.sections.prepare import Executor, PrepareConfig

logger.disable("datatrove")  # a page a task; what goes wrong comes back as an exception
# Each stage has processes of its own. They are forked from a server that has imported all of this once.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["lmkit.prepare.clean.run"])
_LOOK_SEC, _SLURM_LOOK_SEC = 0.3, 2.0


class Stage(NamedTuple):
    """Steps that run in so many tasks. The label names a step in the counts; '' counts nothing."""

    name: str
    tasks: int
    steps: list[tuple[str, PipelineStep]]


def run_stage(stage: Stage, how: PrepareConfig, folder: Path, tell: Callable[[set[int]], None]) -> None:
    """Runs the tasks that are not done yet; `folder` keeps which are. tell(tasks done) is called now and then.

    Raises what a task raised, or UserError for one that was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = {Executor.local: _run_local, Executor.slurm: _run_slurm, Executor.ray: _run_ray}[how.executor]
    executor_args = {"pipeline": [step for _, step in stage.steps], "tasks": stage.tasks, "logging_dir": str(folder)}
    with _watching(folder, tell):
        if len(done(folder)) < stage.tasks:
            run(stage, how, executor_args, folder)
    if missing := stage.tasks - len(done(folder)):
        raise UserError(f"{missing} of {stage.tasks} tasks of the stage {stage.name!r} failed; see {folder}")


def done(folder: Path) -> set[int]:
    """Tasks that are done."""
    return {int(path.name) for path in (folder / "completions").glob("*")}


@contextlib.contextmanager
def _watching(folder: Path, tell: Callable[[set[int]], None]) -> Iterator[None]:
    """Tells of progress while a stage runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_SEC):
            tell(done(folder))

    tell(done(folder))
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        tell(done(folder))


class _Local(LocalPipelineExecutor):
    """datatrove's, with another pool: its own waits for ever for the task of a worker that was killed."""

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            pipeline = self.pipeline
            for rank in ranks:
                self.pipeline = copy.deepcopy(pipeline)  # each counts for itself
                self._run_for_rank(rank)
            return
        pool = ProcessPoolExecutor(self.workers, mp_context=_PROCESSES)
        try:
            for future in as_completed([pool.submit(self._run_for_rank, rank) for rank in ranks]):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _run_local(stage: Stage, how: PrepareConfig, args: dict[str, Any], folder: Path) -> None:
    workers = min(how.workers or os.cpu_count() or 1, stage.tasks - len(done(folder)))
    try:
        _Local(**args, workers=workers).run()
    except BrokenProcessPool as error:
        raise UserError(
            f"a worker of the stage {stage.name!r} was killed, perhaps for want of memory; set prepare.workers= below "
            f"{workers} and run it again: what is done stays done"
        ) from error


def _run_ray(stage: Stage, how: PrepareConfig, args: dict[str, Any], folder: Path) -> None:
    import ray

    ours = not ray.is_initialized()
    if ours:
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, num_cpus=None if address else how.workers or None, log_to_driver=False,
                 include_dashboard=False, logging_level=logging.ERROR)  # fmt: skip
    try:
        cores = int(ray.cluster_resources().get("CPU", 1))
        RayPipelineExecutor(**args, workers=how.workers or cores, mem_per_cpu_gb=how.memory_gb).run()
    finally:
        if ours:
            ray.shutdown()


class _Slurm(SlurmPipelineExecutor):
    """Without the extra job that adds up counts: were a task to fail, it would stay in the queue for ever."""

    def launch_merge_stats(self) -> None:
        return

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        return {name: value for name, value in super().get_sbatch_args(max_array).items() if value}


def _run_slurm(stage: Stage, how: PrepareConfig, args: dict[str, Any], folder: Path) -> None:
    """Sends an array of jobs and waits for it; after a restart it waits for the one that was sent before."""
    note = folder / "slurm_job"
    if not note.exists() or not _in_queue(note.read_text()):
        hours, minutes = divmod(how.time_limit_minutes, 60)
        # The job finds datatrove's command, and lmkit, where this process has them.
        paths = os.pathsep.join(path for path in sys.path if path)
        command = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={paths}"
        executor = _Slurm(
            **args, time=f"{hours}:{minutes:02}:00", partition=how.partition, mem_per_cpu_gb=how.memory_gb, qos="",
            workers=how.workers or -1, job_name=f"lmkit-{stage.name}", env_command=command,
            sbatch_args=dict(how.sbatch), requeue=False,
        )  # fmt: skip
        try:
            executor.run()
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"prepare.executor=slurm: sbatch did not take the job: {error}") from error
        note.write_text(str(executor.job_id))
    while _in_queue(note.read_text()) and len(done(folder)) < stage.tasks:
        time.sleep(_SLURM_LOOK_SEC)
    if len(done(folder)) < stage.tasks:
        time.sleep(_SLURM_LOOK_SEC)  # a shared folder may be late


def _in_queue(job: str) -> bool:
    """Whether Slurm still knows of tasks of this job to come."""
    said = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True)
    return said.returncode == 0 and any(s not in ("COMPLETED", "FAILED", "CANCELLED") for s in said.stdout.split())
