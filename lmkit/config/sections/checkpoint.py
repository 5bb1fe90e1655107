"""`checkpoint`: what is saved, and how long it is kept."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import Section, key


class Best(Enum):
    """Which value of a metric is the best one."""

    lowest = 0
    highest = 1


@dataclass
class CheckpointConfig(Section):
    """What is saved, and how long it is kept."""

    section: ClassVar[str] = "checkpoint"
    changes_results: ClassVar[bool] = False

    save_every_steps: int = key(500, "steps between saves; 0 = only at the end", at_least=0)
    keep_last: int = key(2, "newest checkpoints kept", at_least=1)
    keep_best: int = key(1, "best checkpoints kept, by best_metric", at_least=0)
    best_metric: str = key("eval/loss", "figure of an evaluation that says which checkpoint is best")
    best: Best = key(Best.lowest, "whether its lowest or its highest value is the best")
    compress: bool = key(False, "zstd; saves about 7 % of a float32 state and doubles the time")
    verify: bool = key(True, "compare each file's CRC-32 with the manifest before restoring")
