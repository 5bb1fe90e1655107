"""`optim`: the optimiser and its schedule."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


class Optimizer(Enum):
    """Update rule."""

    adamw = 0
    lion = 1
    adafactor = 2
    muon = 3
    sgd = 4
    schedule_free_adamw = 5


class Schedule(Enum):
    """Course of the learning rate after the warm-up."""

    cosine = 0
    linear = 1
    wsd = 2  # warm-up, stable, decay: constant, then linear decay over the last `decay_share`
    constant = 3


class ParamKind(Enum):
    """What a parameter is, for decay masks."""

    matrix = 0
    embedding = 1
    vector = 2  # norm scales and biases


@dataclass
class OptimConfig(Section):
    """The optimiser."""

    section: ClassVar[str] = "optim"

    kind: Optimizer = key(Optimizer.adamw, "update rule")
    learning_rate: float = key(3e-4, "peak learning rate (of matrices, with muon)", at_least=0.0)
    adam_learning_rate: float = key(3e-3, "with muon: peak rate of what is not a matrix, and of the head", at_least=0.0)
    schedule: Schedule = key(Schedule.cosine, "course of the learning rate after the warm-up")
    warmup_steps: int = key(100, "steps of linear warm-up from 0", at_least=0)
    decay_share: float = key(0.2, "with wsd: share of the steps that decay", at_least=0.0, at_most=1.0)
    final_ratio: float = key(0.1, "last learning rate / peak", at_least=0.0, at_most=1.0)
    beta1: float = key(0.9, "momentum of Adam and Lion", at_least=0.0, at_most=1.0)
    beta2: float = key(0.95, "second-moment decay of Adam, momentum decay of Lion", at_least=0.0, at_most=1.0)
    eps: float = key(1e-8, "added to Adam's denominator", at_least=0.0)
    momentum: float = key(0.95, "momentum of Muon and SGD", at_least=0.0, at_most=1.0)
    weight_decay: float = key(0.1, "decoupled decay, times the learning rate", at_least=0.0)
    decay: list[ParamKind] = key([ParamKind.matrix], "kinds of parameters that decay")
    clip_norm: float = key(1.0, "largest global norm of the gradient; 0 = no clipping", at_least=0.0)
    freeze: list[str] = key([], "patterns of parameters that do not train, such as embed or stack.*.attention.*")
    rates: dict[str, float] = key({}, "pattern: factor of its parameters' learning rate; the last that matches counts")
    ema: float = key(
        0.0, "decay of a moving average of parameters used at evaluation; 0 = off", at_least=0.0, at_most=1.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for pattern, factor in self.rates.items():
            if factor <= 0:
                raise ConfigError(
                    f"optim.rates: {pattern}={factor}: a factor is above 0; optim.freeze=[{pattern}] stops it"
                )
        if self.kind is Optimizer.schedule_free_adamw:
            self._check_schedule_free()

    def _check_schedule_free(self) -> None:
        """Raises ConfigError for what an average of iterates cannot follow (Defazio et al. 2024, section 2)."""
        if self.schedule is not Schedule.constant:
            raise ConfigError(
                f"optim.schedule={self.schedule.name} with optim.kind=schedule_free_adamw: it evaluates at an average "
                f"in place of a decay; set optim=schedule_free_adamw, or optim.schedule=constant"
            )
        if not self.beta1:
            raise ConfigError(
                "optim.beta1=0.0 with optim.kind=schedule_free_adamw: gradients are taken between the average and the "
                "iterate, beta1 of the way; set optim.beta1=0.9"
            )
        if self.rates:
            raise ConfigError(
                "optim.rates with optim.kind=schedule_free_adamw: it evaluates at an average that one learning rate "
                "is behind; set optim.kind=adamw, or optim.rates={}"
            )
