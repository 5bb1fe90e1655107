"""Which library a run's products get follows from its experiment alone."""

import jax
import numpy as np
import pytest

from helpers import tiny_experiment
from lmkit.config.base import ConfigError
from lmkit.core.setup import setup_mesh, use_onednn
from lmkit.core.state import make_blueprint
from lmkit.parallel.mesh import build_mesh

SHAPES = {"inputs": np.zeros((32, 64), np.int32), "weights": np.zeros((32, 64), np.float32)}


@pytest.mark.parametrize(
    ("key", "dtype", "steps", "has", "expected"),
    [("auto", "bfloat16", 1, True, False), ("auto", "bfloat16", 10**6, True, True),
     ("auto", "auto", 10**6, True, False), ("auto", "bfloat16", 10**6, False, False),
     ("xla", "bfloat16", 10**6, True, False), ("onednn", "auto", 1, True, True)],
)  # fmt: skip
def test_long_bfloat16_runs_call_onednn(
    key: str, dtype: str, steps: int, has: bool, expected: bool, monkeypatch
) -> None:
    monkeypatch.setattr("lmkit.core.setup.has_onednn", lambda bfloat16: has)
    experiment = tiny_experiment(f"run.cpu_products={key}", f"model.dtype={dtype}", f"train.steps={steps}")
    mesh = build_mesh(experiment.mesh, jax.devices()[:1])
    blueprint = make_blueprint(experiment.model, experiment.optim, steps, mesh)
    assert use_onednn(experiment, blueprint, SHAPES) is expected


def test_what_cannot_be_is_said(monkeypatch) -> None:
    monkeypatch.setattr("lmkit.core.setup.has_onednn", lambda bfloat16: False)
    with pytest.raises(ConfigError, match=f"jax {jax.__version__} on cpu does not call it; take .* auto"):
        setup_mesh(tiny_experiment("run.cpu_products=onednn"), jax.devices()[:1])
