"""The full step, compiled for devices that are not here: nothing runs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.core.inputs import make_inputs
from lmkit.core.setup import lower_step, setup_mesh
from lmkit.core.state import Blueprint, make_blueprint
from lmkit.data.loader import array_sharding
from lmkit.objectives.build import Batch


def compile_step(
    experiment: Experiment, devices: Sequence[Any], options: dict[str, Any] | None = None
) -> tuple[Blueprint, Any]:
    """The state's blueprint on these devices, and the compiled train step; arguments and errors as of lower_ahead.

    `options`: of the compiler.
    """
    blueprint, lowered = lower_ahead(experiment, devices)
    return blueprint, lowered.compile(options)


def lower_ahead(experiment: Experiment, devices: Sequence[Any]) -> tuple[Blueprint, Any]:
    """The state's blueprint on these devices, and the train step, ready to compile.

    `devices`: of a slice or of GPUs that need not be here, see compiler/topology.py. Set jax up for the CPU first.
    Raises ConfigError where the vocabulary is not known.
    """
    mesh = setup_mesh(experiment, devices)
    if any(not part.vocab_size for part in experiment.model.towers().values() if hasattr(part, "tie_embeddings")):
        raise ConfigError("model.vocab_size=0 takes the tokenizer's size, which is not known here: set it")
    blueprint = make_blueprint(experiment.model, experiment.optim, experiment.train.steps, mesh, experiment.lora)
    return blueprint, lower_step(experiment, blueprint, batch_shapes(experiment, mesh))


def batch_shapes(experiment: Experiment, mesh: jax.sharding.Mesh) -> Batch:
    """A global batch as shapes, dtypes and shardings."""
    small = dataclasses.replace(experiment.train, batch_size=2, accumulate_steps=1)
    arrays = make_inputs(dataclasses.replace(experiment, train=small), experiment.model)
    return {
        name: jax.ShapeDtypeStruct(shape, x.dtype, sharding=array_sharding(name, shape, mesh))
        for name, x in arrays.items()
        for shape in [(experiment.train.batch_size, *x.shape[1:])]
    }
