"""Optimisers made wrongly say what is wrong and the way out."""

from collections.abc import Callable

import jax.numpy as jnp
import pytest

from lmkit.config.base import ConfigError
from lmkit.config.sections.optim import OptimConfig, ParamKind
from lmkit.nn.param import ParamSpec
from lmkit.optim import build_optim, make_schedule

SPEC = {"kernel": ParamSpec((2, 3), ("embed", "mlp"), ParamKind.matrix, 1)}


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda: build_optim(OptimConfig(), 100, {"kernel": jnp.ones((2, 3))}), "specs hold .*, not ParamSpec: give"),
    (lambda: build_optim(OptimConfig(), 100, {}), "specs hold nothing, not ParamSpec"),
    (lambda: build_optim(OptimConfig(), 0, SPEC), "steps=0: a schedule is over at least 1 step"),
    (lambda: build_optim(OptimConfig(rates={"nothing": 2.0}), 9, SPEC), "optim.rates"),
    (lambda: make_schedule(OptimConfig(), -1, 1.0), "steps=-1"),
    (lambda: OptimConfig(kind="adamw"), "optim.kind='adamw': give one of Optimizer.adamw"),  # type: ignore[arg-type]
    (lambda: OptimConfig(learning_rate="fast"), "optim.learning_rate='fast': give a value of type float"),  # type: ignore
])  # fmt: skip
def test_a_wrong_call(wrong: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()
