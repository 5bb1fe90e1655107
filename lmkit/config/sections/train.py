"""`train`: the main loop."""

from dataclasses import dataclass
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


@dataclass
class TrainConfig(Section):
    """The main loop."""

    section: ClassVar[str] = "train"

    steps: int = key(1000, "optimiser steps", at_least=1, changes_results=False)
    batch_size: int = key(32, "sequences per step over all devices and hosts", at_least=1)
    accumulate_steps: int = key(1, "micro-batches a step is split into, accumulated in float32", at_least=1)
    log_every_steps: int = key(10, "steps between rows of metrics", at_least=1, changes_results=False)
    eval_every_steps: int = key(
        200, "steps between evaluations; 0 = only at the end", at_least=0, changes_results=False
    )
    eval_batches: int = key(
        0,
        "batches of each part of the mixture in an evaluation, spread over what is held out; 0 = all of it",
        at_least=0,
        changes_results=False,
    )
    last_eval_batches: int = key(
        -1,
        "the same for the evaluation after the last step; -1 = train.eval_batches",
        at_least=-1,
        changes_results=False,
    )
    eval_texts: int = key(
        64,
        "with a source: held-out texts written and scored in an evaluation, all in a last one that is over all; "
        "0 = none on the way",
        at_least=0,
        changes_results=False,
    )
    eval_beams: int = key(
        1, "beams of the search that writes them; 1 = the likeliest token", at_least=1, changes_results=False
    )
    eval_tasks: list[str] = key(
        [], "tasks of lm-eval that are scored at each evaluation, as eval/tasks/NAME/METRIC", changes_results=False
    )
    eval_limit: int = key(
        100, "items of each of them, so much time do they take; 0 = all", at_least=0, changes_results=False
    )
    patience: int = key(
        0,
        "evaluations without a better checkpoint.best_metric that end the run; 0 = off",
        at_least=0,
        changes_results=False,
    )
    folds: int = key(0, "cross-validation: so many runs, each with another share of the data held out", at_least=0)
    sample_tokens: int = key(
        96, "tokens of the sample made at each evaluation; 0 = none", at_least=0, changes_results=False
    )
    sample_gib: float = key(
        0.0,
        "GiB of a device for the copy of the parameters, not split over mesh.fsdp, that a sample reads; where it takes "
        "more, none is made; 0 = what the state leaves",
        at_least=0.0,
        changes_results=False,
    )
    sample_prompt: str = key("", "text that the sample continues; '' = start of a document", changes_results=False)
    sample_temperature: float = key(0.7, "temperature of the sample; 0 = greedy", at_least=0.0, changes_results=False)

    @property
    def batches_at_end(self) -> int:
        """Batches of the evaluation after the last step; 0 for all."""
        return self.eval_batches if self.last_eval_batches < 0 else self.last_eval_batches

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise ConfigError("train.folds=1: cross-validation needs 2 folds or more; 0 switches it off")
        if self.patience and not self.eval_every_steps:
            raise ConfigError(
                f"train.patience={self.patience} with train.eval_every_steps=0: there is no evaluation on the way to "
                f"stop at; set train.eval_every_steps"
            )
        if self.batch_size % self.accumulate_steps:
            fit = self.batch_size // self.accumulate_steps * self.accumulate_steps
            raise ConfigError(
                f"train.batch_size={self.batch_size} is not divisible by train.accumulate_steps="
                f"{self.accumulate_steps}: the nearest sizes that fit are {fit or self.accumulate_steps} "
                f"and {fit + self.accumulate_steps}"
            )
