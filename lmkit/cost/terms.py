"""The factors of a machine that explain a measured step: the least change of those that were taken.

One run is one equation. Of all factors that solve it, those are chosen that are nearest to the start, by ratios: what
the step's time hangs on most changes most, and what it does not hang on stays. (Small steps along the gradient of
log time by log factor: where the longest of several things counts, that follows whichever is longest at the time.)
"""

import math
from typing import NamedTuple

from lmkit.cost.estimate import Estimate, exposed

_STEP, _MOST = 0.01, 5000  # of log time at a time; steps
_SEEN = 0.02  # a factor on which less of the step's time hangs is not told by a run


class Terms(NamedTuple):
    """What a step's time is made of: seconds at the rate of large products, and at the peaks of memory and network."""

    compute: float
    memory: float
    overlapped: float  # what is sent and can be hidden behind the first two
    waited: float

    def total(self, factors: dict[str, float]) -> float:
        """Seconds of a step at these shares of the peaks: keys of the section plan."""
        busy = self.compute / factors["compute_share"] + self.memory / factors["memory_share"]
        overlapped = self.overlapped / factors["network_share"]
        sent = exposed(overlapped, busy, factors["exposed_share"])
        return busy + sent + self.waited / factors["network_share"] + factors["step_overhead_sec"]


class Fit(NamedTuple):
    """Factors, and on which share of log time each hangs there."""

    factors: dict[str, float]
    slopes: dict[str, float]

    @property
    def seen(self) -> dict[str, float]:
        """Those factors that the run says something about."""
        return {name: value for name, value in self.factors.items() if abs(self.slopes[name]) > _SEEN}


def terms_of(found: Estimate) -> Terms:
    """An estimate's step, at these rates."""
    step, plan = found.step, found.context.experiment.plan
    return Terms(
        step.compute * plan.compute_share, step.memory * plan.memory_share, step.overlapped * plan.network_share,
        step.waited * plan.network_share,
    )  # fmt: skip


def fit(terms: Terms, start: dict[str, float], seconds: float, *, capped: bool = True) -> Fit:
    """The factors nearest to `start` with which a step takes `seconds`.

    `capped`: no share goes above 1; where that leaves a step too slow, it is as fast as it can be.
    """
    factors = dict(start)
    for _ in range(_MOST):
        gap = math.log(seconds / terms.total(factors))
        full = {name for name, value in factors.items() if name.endswith("_share") and value >= 1} if capped else set()
        slopes = {name: slope for name, slope in _slopes(terms, factors).items() if gap > 0 or name not in full}
        square = sum(slope**2 for slope in slopes.values())
        if abs(gap) < 1e-6 or square < 1e-6:
            break
        move = max(-_STEP, min(_STEP, gap)) / square
        for name, slope in slopes.items():
            moved = factors[name] * math.exp(max(-_STEP, min(_STEP, move * slope)))
            factors[name] = min(moved, 1.0) if capped and name.endswith("_share") else moved
    return Fit(factors, _slopes(terms, factors))


def _slopes(terms: Terms, factors: dict[str, float]) -> dict[str, float]:
    """Of log time by the log of each factor."""
    small = 1e-6
    at = terms.total(factors)
    return {
        name: math.log(terms.total(factors | {name: value * math.exp(small)}) / at) / small
        for name, value in factors.items()
    }
