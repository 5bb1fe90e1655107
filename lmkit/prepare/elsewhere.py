"""Parts of a store made by the executors that clean a corpus: processes, Slurm, Ray."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from lmkit.config.sections.prepare import PrepareConfig
from lmkit.prepare.clean.engine import Stage, run_stage


class MakePart(PipelineStep):
    """A task a part; those that are there already are left as they are."""

    name = "part of a store"
    type = "lmkit"

    def __init__(self, make: Callable[[int], None], parts: list[int]):
        super().__init__()
        self.make, self.parts = make, set(parts)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        if rank in self.parts:
            self.make(rank)
        yield from ()


class Elsewhere:
    """A runner for `build_frame`."""

    def __init__(self, how: PrepareConfig, progress: Callable[[str, int, int], None]):
        self.how, self.progress = how, progress

    def __call__(self, work: Path, parts: list[int], make: Callable[[int], None]) -> None:
        if not parts:
            return
        stage = Stage("tokenise", max(parts) + 1, [("", MakePart(make, parts))])
        logs = work / "logs" / str(len(parts))  # what a run before this one had left to do is not what this one has
        run_stage(stage, self.how, logs, lambda done: self.progress("tokenising parts", len(done), stage.tasks))
