"""The full step, compiled for a slice that is not here, and what it sends: nothing runs."""

import dataclasses
from typing import Any

import jax

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.data.loader import array_sharding
from lmkit.objectives.build import Batch
from lmkit.parallel.collectives import Collective, collectives
from lmkit.parallel.devices import setup_cpu
from lmkit.parallel.topology import COUNTABLE, topology_devices
from lmkit.train.setup import lower_step, setup_mesh
from lmkit.train.state import Blueprint, make_blueprint
from lmkit.verify.inputs import make_inputs


def compile_for(experiment: Experiment, name: str) -> tuple[Blueprint, Any]:
    """The state's blueprint on a slice such as v5e:16x16, and the compiled train step."""
    setup_cpu(experiment.run)
    mesh = setup_mesh(experiment, topology_devices(name))
    if any(not part.vocab_size for part in experiment.model.parts().values() if hasattr(part, "tie_embeddings")):
        raise ConfigError("model.vocab_size=0 takes the tokenizer's size, which is not known here: set it")
    blueprint = make_blueprint(experiment.model, experiment.optim, experiment.train.steps, mesh, experiment.lora)
    return blueprint, lower_step(experiment, blueprint, _shapes(experiment, mesh)).compile(COUNTABLE)


def _shapes(experiment: Experiment, mesh: jax.sharding.Mesh) -> Batch:
    small = dataclasses.replace(experiment.train, batch_size=2, accumulate_steps=1)
    arrays = make_inputs(dataclasses.replace(experiment, train=small), experiment.model)
    return {
        name: jax.ShapeDtypeStruct(shape, x.dtype, sharding=array_sharding(name, shape, mesh))
        for name, x in arrays.items()
        for shape in [(experiment.train.batch_size, *x.shape[1:])]
    }


def step_collectives(blueprint: Blueprint, compiled: Any) -> list[Collective]:
    """What the compiled step sends."""
    return collectives(compiled.as_text() or "", blueprint.mesh.shape)
