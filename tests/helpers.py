"""Short ways to what many tests need."""

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment
from lmkit.config.sections.families import GPTConfig
from lmkit.core.setup import lower_step
from lmkit.core.state import Blueprint, State, init_state, make_blueprint
from lmkit.models import GPT
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of

ROOT = Path(__file__).resolve().parents[1]
TINY = {"vocab_size": 256, "num_layers": 2, "num_heads": 4, "embed_dim": 64}
MESHES = {
    "data8": ["mesh.data=8"],
    "fsdp8": ["mesh.data=1", "mesh.fsdp=8"],
    "data2_fsdp2_tensor2": ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"],
}


def tiny_config(**changes: Any) -> GPTConfig:
    return GPTConfig(**(TINY | changes))


def tiny_model(seed: int = 0, **changes: Any) -> GPT:
    return GPT(tiny_config(**changes), rngs=nnx.Rngs(seed))


def params_of(model: nnx.Module) -> tuple[nnx.GraphDef, dict]:
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def tiny_experiment(*overrides: str) -> Experiment:
    experiment = compose(["+experiment=gpt_tiny", *overrides])
    experiment.model.vocab_size = experiment.model.vocab_size or 260
    return experiment


def random_batch(step: int, rows: int = 8, seq: int = 64, vocab: int = 256) -> dict[str, np.ndarray]:
    """Tokens with something to learn, uneven weights and several segments a row."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, vocab, (rows, seq + 1), dtype=np.int32)
    tokens[:, ::3] = 7
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (tokens[:, 1:] % 5 != 0).astype(np.float32) * (np.arange(rows)[:, None] % 3 != 1),
        "segment_ids": (tokens[:, :-1] < 9).cumsum(-1).astype(np.int32),
    }


def train_steps(experiment: Experiment, steps: int, num_devices: int = 8) -> tuple[list[float], State, Blueprint]:
    """Losses of the first steps on random batches, on a mesh of so many devices."""
    mesh = build_mesh(experiment.mesh, jax.devices()[:num_devices])
    blueprint = make_blueprint(experiment.model, experiment.optim, experiment.train.steps, mesh, experiment.lora)
    state = init_state(blueprint, experiment.run.seed)
    sharding = sharding_of(("batch", "seq"), mesh)
    batches = [jax.device_put(random_batch(number), sharding) for number in range(steps)]
    losses = []
    with jax.set_mesh(mesh):
        compiled = lower_step(experiment, blueprint, batches[0]).compile()
        for batch in batches:
            state, metrics = compiled(state, batch)
            losses.append(float(metrics["loss"]))
    return losses, state, blueprint


def rotated(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Values to parametrise over: these are in the fast suite, all others near-equal and slow, in CI's rotation."""
    values = list(values)
    assert set(map(str, fast)) <= set(map(str, values)), f"{fast} of {values}"
    marks = {str(value): () if str(value) in set(map(str, fast)) else (pytest.mark.slow,) for value in values}
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks[str(value)]) for value in values
    ]


def leaves_equal(a: Any, b: Any) -> bool:
    """Bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def load_tool(name: str) -> ModuleType:
    """A script of tools/, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """All operations of a program, in the programs that it calls, too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, Jaxpr)):
            if isinstance(value, ClosedJaxpr | Jaxpr):
                yield from equations(value.jaxpr if isinstance(value, ClosedJaxpr) else value)
