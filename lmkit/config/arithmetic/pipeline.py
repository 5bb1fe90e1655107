"""Arithmetic of pipelines, for those who check and tell of one and for those who run it."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.train import TrainConfig

STAGE, ROW_AXES = "stage", ("data", "fsdp", "expert")  # the mesh axes that split a stage's rows
_PER_STAGE = 4  # micro-batches a stage where nobody says: the bubble is then below a fifth


class Pipe(NamedTuple):
    """How a stack goes through its stages."""

    stages: int
    microbatches: int
    rounds: int

    @property
    def ticks(self) -> int:
        """So many times every stage does one of its chunks of layers."""
        return self.rounds * self.microbatches + self.stages - 1

    @property
    def bubble(self) -> float:
        """Share of the ticks in which a stage has nothing to do (Narayanan et al. 2021, section 2.2)."""
        return (self.stages - 1) / self.ticks

    def __str__(self) -> str:
        rounds = f", {self.rounds} rounds" if self.rounds > 1 else ""
        return (
            f"{self.stages} stages, {self.microbatches} micro-batches{rounds}: the bubble is {self.stages - 1} of "
            f"{self.ticks} ticks, {self.bubble:.1%} of the time in the layers"
        )


def fits(microbatches: int, rows: int, stages: int) -> bool:
    """Whether so many micro-batches have equal shares of the rows that one device of each stage has of a batch.

    A micro-batch takes its rows from whole stages, or a stage gives its rows to whole micro-batches.
    """
    return rows % math.lcm(stages, microbatches) == 0


def choose_microbatches(asked: int, rows: int, stages: int) -> int:
    """The most that fit, `asked` at most; 0 for four a stage. rows: a multiple of the stages."""
    return max(n for n in range(1, min(asked or _PER_STAGE * stages, rows) + 1) if fits(n, rows, stages))


def pipes_of(model: ModelConfig, train: TrainConfig, sizes: Mapping[str, int]) -> dict[str, Pipe]:
    """The pipes of a model's transformers by their prefix, on a mesh of these axis sizes; {} without stages."""
    if (stages := sizes[STAGE]) == 1:
        return {}
    rows = train.batch_size // train.accumulate_steps // math.prod(sizes[axis] for axis in ROW_AXES)
    return {
        prefix: Pipe(stages, choose_microbatches(part.microbatches, rows, stages), part.rounds)
        for prefix, part in model.towers().items()
    }
