"""What is told of a law: of each run, of its exponents, of the best use of FLOPs. All of it, for JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmkit.plan.scaling.fit import MOST_EXPONENT, Fit, Law
from lmkit.plan.scaling.runs import FinishedRun

Interval = tuple[float, float]


class Prediction(NamedTuple):
    """A run that the fit has not seen."""

    run: FinishedRun
    loss: float
    interval: Interval  # of 90 %: of the law, and of runs around it

    @property
    def inside(self) -> bool:
        return self.interval[0] <= self.run.loss <= self.interval[1]


class Best(NamedTuple):
    """The best use of so many FLOPs, each figure with its 90 % interval."""

    flops: float
    params: float
    params_interval: Interval
    tokens: float
    tokens_interval: Interval
    ratio: float  # tokens a parameter
    ratio_interval: Interval
    loss: float
    loss_interval: Interval
    beyond: float  # FLOPs over those of the largest run


@dataclass(frozen=True)
class Result:
    """A fit and the runs it is of."""

    fit: Fit
    fitted: Sequence[FinishedRun]
    held_out: Sequence[FinishedRun]
    count: str  # what N is: the name of a field of FinishedRun
    budgets: Sequence[float]  # FLOPs that the user asked about
    seed: int

    @property
    def runs(self) -> list[FinishedRun]:
        return [*self.fitted, *self.held_out]

    def size(self, run: FinishedRun) -> int:
        """N."""
        return getattr(run, self.count)

    def spent(self, run: FinishedRun) -> float:
        """6 N D: FLOPs as the law counts them. What a run really took, its head and attention too, is run.flops."""
        return 6.0 * self.size(run) * run.tokens

    def figures(self) -> dict[str, tuple[float, Interval]]:
        """The parameters, and the exponents of the best N and D, each with its 90 % interval."""
        law, draws = self.fit.law, self.fit.draws
        rows = {name: (getattr(law, name), [getattr(one, name) for one in draws]) for name in Law._fields}
        rows["b/(a+b)"] = law.size_exponent, [one.size_exponent for one in draws]
        rows["a/(a+b)"] = 1 - law.size_exponent, [1 - one.size_exponent for one in draws]
        return {name: (value, self.fit.interval(some)) for name, (value, some) in rows.items()}

    def at_bounds(self) -> list[str]:
        """What the runs do not tell: a floor of nothing, exponents at their ends or of terms that are nothing."""
        law, least = self.fit.law, min(run.loss for run in self.fitted)
        terms = {
            "a": law.A * min(self.size(run) for run in self.fitted) ** -law.a,
            "b": law.B * min(run.tokens for run in self.fitted) ** -law.b,
        }
        no_floor = ["E"] if law.E / least < 1e-3 else []
        return no_floor + [
            name
            for name, most in terms.items()
            if most < 1e-3 * least or not 2e-3 < getattr(law, name) < 0.99 * MOST_EXPONENT
        ]

    def predictions(self) -> list[Prediction]:
        return [Prediction(run, *self.fit.predict(self.size(run), run.tokens, self.seed)) for run in self.held_out]

    def best(self) -> list[Best]:
        """Of the budgets asked for, else of that of the largest run, and of 10 and 100 times as much."""
        most = max(self.spent(run) for run in self.runs)
        return [self._best(flops, most) for flops in self.budgets or (most, 10 * most, 100 * most)]

    def _best(self, flops: float, most: float) -> Best:
        def row(law: Law) -> tuple[float, float, float, float]:
            params, tokens = law.best(flops)
            return params, tokens, tokens / params, float(law.loss(params, tokens))

        columns = zip(row(self.fit.law), *(row(law) for law in self.fit.draws), strict=True)
        (n, d, ratio, loss) = [(value, self.fit.interval(some)) for value, *some in columns]
        return Best(flops, *n, *d, *ratio, *loss, flops / most)


def as_plain(result: Result) -> dict[str, Any]:
    """Every figure, for JSON; losses in nats a token. `runs` can be given to the verb again in place of directories."""
    names = {run.name for run in result.held_out}
    law, predictions = result.fit.law, {one.run.name: one for one in result.predictions()}
    runs = []
    for run in result.runs:
        row = run._asdict() | {"held_out": run.name in names, "law": float(law.loss(result.size(run), run.tokens))}
        if run.name in predictions:
            row |= {"interval": predictions[run.name].interval, "inside": predictions[run.name].inside}
        runs.append(row)
    return {
        "law": {name: {"value": value, "interval": interval} for name, (value, interval) in result.figures().items()},
        "at_bounds": result.at_bounds(),
        "count": result.count,
        "draws": len(result.fit.draws),
        "best": [one._asdict() for one in result.best()],
        "runs": runs,
    }
