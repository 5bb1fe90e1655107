"""Which evaluation was the best so far, and when to stop waiting for a better one."""

import json
import math
from pathlib import Path

from lmkit import hosts
from lmkit.config.base import ConfigError, nearest
from lmkit.config.sections.checkpoint import Best, CheckpointConfig
from lmkit.tracker import read_rows


class BestSoFar:
    """The best value of checkpoint.best_metric, where it was, and how many evaluations have passed since.

    It is read again from metrics.jsonl, so a resumed run stops where an uninterrupted one would.
    """

    def __init__(self, config: CheckpointConfig, patience: int, run: Path):
        self.config, self.patience = config, patience
        self.value, self.step, self.since = math.nan, 0, 0
        self.values: dict[int, float] = {}  # of the evaluations before, by step
        name = config.best_metric
        rows = [(row["step"], row[name]) for row in read_rows(run / "metrics.jsonl") if row.get(name) is not None]
        for step, value in json.loads(hosts.share("evaluations", json.dumps(rows))):
            self.values[step] = self.see(step, {name: value})

    def see(self, step: int, means: dict[str, float]) -> float:
        """Takes note of an evaluation and returns its value. Raises ConfigError where it lacks the metric."""
        name = self.config.best_metric
        if name not in means:
            raise ConfigError(
                f"checkpoint.best_metric={name} is no figure of this run's evaluation.{nearest(name, means)} "
                f"There are {', '.join(means)}"
            )
        value = means[name]
        better = value < self.value if self.config.best is Best.lowest else value > self.value
        if better or (math.isnan(self.value) and not math.isnan(value)):
            self.value, self.step, self.since = value, step, 0
        else:
            self.since += 1
        return value

    @property
    def exhausted(self) -> bool:
        """Whether `patience` evaluations in a row were no better."""
        return 0 < self.patience <= self.since

    def summary(self) -> dict[str, float]:
        """The best evaluation, for summary.json."""
        return {} if math.isnan(self.value) else {"best/step": self.step, f"best/{self.config.best_metric}": self.value}
