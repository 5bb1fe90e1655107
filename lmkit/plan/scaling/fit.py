"""The law of Hoffmann et al. 2022, fitted as their approach 3 (section 3.3): loss = E + A / N^a + B / D^b.

N parameters, D tokens, loss in nats a token. Huber's loss of the difference of logarithms, the three terms as a
log-sum-exp, L-BFGS from a grid of starts.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from lmkit.config.base import ConfigError

Floats = NDArray[np.float64]
NUM_PARAMS = 5
DELTA = 1e-3  # where Huber's loss turns linear: section 3.3 there
MOST_EXPONENT = 2.0  # of a and b; beyond, a term is a step and no power law
LEAST_SHARE = 1e-4  # of the loss that E may be


class Law(NamedTuple):
    """loss(N, D) = E + A / N^a + B / D^b."""

    E: float
    A: float
    B: float
    a: float
    b: float

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Floats:
        """Nats a token."""
        params, tokens = np.asarray(params, float), np.asarray(tokens, float)
        return self.E + self.A * params**-self.a + self.B * tokens**-self.b

    @property
    def size_exponent(self) -> float:
        """The best N grows as FLOPs to this power (section 3.3, equation 4); the best D as to 1 minus it."""
        return self.b / (self.a + self.b)

    def best(self, flops: float) -> tuple[float, float]:
        """(N, D) of the least loss with 6 N D = flops."""
        scale = (self.a * self.A / (self.b * self.B)) ** (1 / (self.a + self.b))
        params = scale * (flops / 6) ** self.size_exponent
        return params, flops / 6 / params


class Points(NamedTuple):
    """Runs as arrays [runs]."""

    params: Floats
    tokens: Floats
    loss: Floats

    def check(self) -> None:
        """Raises ConfigError where they cannot tell five parameters."""
        if len(self.loss) <= NUM_PARAMS:
            raise ConfigError(
                f"{len(self.loss)} runs for a law of {NUM_PARAMS} parameters: at least {NUM_PARAMS + 1} are needed "
                f"beside those held out; add runs, or set --hold-out 0"
            )
        for name, values in (("sizes", self.params), ("numbers of tokens", self.tokens)):
            if (many := len(np.unique(values))) < 3:
                raise ConfigError(f"{many} different {name}: an exponent needs at least 3; add runs of others")
        x, y = np.log(self.params), np.log(self.tokens)
        if abs(np.corrcoef(x, y)[0, 1]) > 0.999:
            raise ConfigError(
                "tokens go with size in all runs, so what either does cannot be told apart: add runs of one size with "
                "more and with fewer tokens"
            )


class Fit(NamedTuple):
    """A law, and what it would have been with other weights of the runs."""

    law: Law
    draws: list[Law]
    residuals: Floats  # log(measured / fitted) of the runs fitted

    def interval(self, values: Sequence[float]) -> tuple[float, float]:
        """The middle 90 % of values, one a draw."""
        low, high = np.quantile(values, [0.05, 0.95])
        return float(low), float(high)

    def predict(self, params: float, tokens: float, seed: int) -> tuple[float, tuple[float, float]]:
        """The loss of one more run, and its 90 % interval: that of the law, and the scatter of runs around it."""
        rng, n = np.random.default_rng(seed), len(self.residuals)
        scatter = self.residuals * np.sqrt(n / (n - NUM_PARAMS))  # the fit has taken so many degrees of freedom
        losses = [float(law.loss(params, tokens)) * np.exp(rng.choice(scatter)) for law in self.draws]
        return float(self.law.loss(params, tokens)), self.interval(losses)


def fit(points: Points, *, draws: int, seed: int) -> Fit:
    """The law of these runs, and `draws` of it by the Bayesian bootstrap (Rubin 1981).

    A draw weighs the runs by a flat Dirichlet distribution. Drawing runs with replacement would do the same of many
    runs; of ten it leaves out four each time, and often too many for five parameters.
    """
    points.check()
    problem = _Problem(points)
    ones = np.ones(len(points.loss))
    starts = problem.starts()
    theta, other = problem.best(starts, ones), starts[len(starts) // 2]
    weights = np.random.default_rng(seed).dirichlet(ones, draws) * len(ones)
    found = [problem.law(problem.best([theta, other], row)) for row in weights]
    law = problem.law(theta)
    return Fit(law, found, np.log(points.loss / law.loss(points.params, points.tokens)))


class _Problem:
    """theta = (log E, log A / n^a, log B / d^b, a, b), where n and d are the geometric means of the runs.

    Around the means a term's size and its exponent are nearly independent, which L-BFGS wants; around N = D = 1 they
    are not (Besiroglu et al. 2024 found that the published fit had stopped too early).
    """

    def __init__(self, points: Points):
        x, y = np.log(points.params), np.log(points.tokens)
        self.center = x.mean(), y.mean()
        self.x, self.y, self.target = x - self.center[0], y - self.center[1], np.log(points.loss)
        one, zero = np.ones_like(self.x), np.zeros_like(self.x)
        rows = [[one, zero, zero], [zero, one, zero], [zero, zero, one], [zero, -self.x, zero], [zero, zero, -self.y]]
        self.design = np.array(rows).reshape(NUM_PARAMS, -1)  # theta @ design: the logarithms of the terms
        least = self.target.min()
        size, exponent = (least - 20, least + 20), (1e-3, MOST_EXPONENT)
        self.bounds = [(least + np.log(LEAST_SHARE), least), size, size, exponent, exponent]

    def starts(self) -> list[Floats]:
        """What the terms share of the mean loss, and steep and flat exponents."""
        mean, out = self.target.mean(), []
        for e, rest, a, b in itertools.product(
            (0.2, 0.5, 0.8), (0.25, 0.75), (0.1, 0.3, 0.6, 1.2), (0.1, 0.3, 0.6, 1.2)
        ):
            shares = np.log([e, (1 - e) * rest, (1 - e) * (1 - rest)]) + mean
            out.append(np.array([*shares, a, b]))
        return out

    def solve(self, start: Floats, weights: Floats) -> tuple[float, Floats]:
        """(objective, theta) at the minimum near a start."""
        found = minimize(
            self._value, start, args=(weights,), jac=True, method="L-BFGS-B", bounds=self.bounds,
            options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-8},
        )  # fmt: skip
        return float(found.fun), found.x

    def best(self, starts: Sequence[Floats], weights: Floats) -> Floats:
        """The lowest minimum from any start."""
        return min((self.solve(start, weights) for start in starts), key=lambda pair: pair[0])[1]

    def _value(self, theta: Floats, weights: Floats) -> tuple[float, Floats]:
        """Sum of Huber's loss over DELTA^2, and its gradient."""
        terms = np.exp((theta[:, None] * self.design).sum(axis=0)).reshape(
            3, -1
        )  # [E, size, tokens; runs]: the bounds keep them small
        fitted = terms.sum(axis=0)
        r = (np.log(fitted) - self.target) / DELTA
        linear = np.minimum(np.abs(r), 1.0)
        slope = weights * np.copysign(linear, r) / DELTA * terms / fitted
        value = (weights * linear * (np.abs(r) - linear / 2)).sum()
        return float(value), (self.design * slope.reshape(-1)).sum(axis=1)

    def law(self, theta: Floats) -> Law:
        e, sa, sb, a, b = map(float, theta)
        return Law(math.exp(e), math.exp(sa + a * self.center[0]), math.exp(sb + b * self.center[1]), a, b)
