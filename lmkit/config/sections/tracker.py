"""`tracker`: where metrics go besides metrics.jsonl."""

from dataclasses import dataclass
from typing import ClassVar

from lmkit.config.base import Section, key


@dataclass
class TrackerConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    section: ClassVar[str] = "tracker"
    changes_results: ClassVar[bool] = False

    names: list[str] = key(["tensorboard"], "any of tensorboard, wandb, mlflow, trackio (the last three are extras)")
    project: str = key("lmkit", "project or experiment name shown by the tracker")
