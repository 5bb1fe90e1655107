"""Objectives: a batch to a summed loss, a summed weight and metrics. The step divides, so shards may be uneven."""

from lmkit.objectives.build import Batch, Objective, build_objective
from lmkit.objectives.sums import Sums

__all__ = ["Batch", "Objective", "Sums", "build_objective"]
