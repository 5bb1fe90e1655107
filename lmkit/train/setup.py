"""From a configuration to everything the loop needs, in the order in which mistakes are cheapest."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from lmkit import interop
from lmkit.checkpoint import Checkpoints, load_params
from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment, check_divides
from lmkit.interop.table import unlike
from lmkit.objectives.build import Batch, build_objective
from lmkit.parallel.mesh import BATCH_AXES, axis_sizes, batch_shards, build_mesh
from lmkit.train.state import Blueprint, State, init_state
from lmkit.train.step import make_eval_step, make_train_step


class Programs(NamedTuple):
    """The compiled train step, the evaluation step, and what the compiler said."""

    train: Any
    evaluate: Any
    memory_bytes: int  # peak on one device, arguments included


def setup_mesh(experiment: Experiment) -> Mesh:
    """The mesh, checked against the batch and the model."""
    sizes = axis_sizes(experiment.mesh, len(jax.devices()))
    parts, train = batch_shards(sizes), experiment.train
    check_divides(
        "train.batch_size" + (" / train.accumulate_steps" if train.accumulate_steps > 1 else ""),
        train.batch_size // train.accumulate_steps, " x ".join(f"mesh.{axis}" for axis in BATCH_AXES), parts,
    )  # fmt: skip
    resolved = dataclasses.replace(
        experiment.mesh, **{axis: n // getattr(experiment.mesh.dcn, axis) for axis, n in sizes.items()}
    )
    dataclasses.replace(experiment, mesh=resolved)  # checks the sizes that were -1
    return build_mesh(experiment.mesh)


def compile_programs(experiment: Experiment, blueprint: Blueprint, shapes: Batch) -> Programs:
    """Compiles the train step, once, from the shapes of a batch. The evaluation step compiles at its first use."""
    objective, train = build_objective(experiment.objective), experiment.train
    step = make_train_step(blueprint, objective, accumulate=train.accumulate_steps, seed=experiment.run.seed)
    with jax.set_mesh(blueprint.mesh):
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(blueprint.shardings, None))
        compiled = jitted.lower(blueprint.shapes, shapes).compile()
    analysis = compiled.memory_analysis()
    memory = 0
    if analysis is not None:
        memory = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
        memory = max(memory - analysis.alias_size_in_bytes, getattr(analysis, "peak_memory_in_bytes", 0))
    return Programs(compiled, jax.jit(make_eval_step(blueprint, objective)), memory)


def starting_state(
    experiment: Experiment, blueprint: Blueprint, checkpoints: Checkpoints
) -> tuple[State, int, list[str]]:
    """The state to go on from, its step, and what is worth telling.

    1. The run's own newest good checkpoint.
    2. `init_from`: parameters from there, everything else fresh.
    3. Scratch.
    """
    if (restored := checkpoints.restore(blueprint.shapes)) is not None:
        state, step, skipped = restored
        return state, step, [*skipped, f"resumed at step {step}"]
    state = init_state(blueprint, experiment.run.seed)
    if not experiment.init_from:
        return state, 0, []

    params, place = starting_params(Path(experiment.init_from), blueprint)
    state = state | {
        "params": params,
        "opt": jax.jit(blueprint.optim.transform.init, out_shardings=blueprint.shardings["opt"])(params),
    }
    if "ema" in state:
        state["ema"] = jax.tree.map(lambda x: x.copy(), params)
    return state, 0, [f"parameters from {place}"]


def starting_params(path: Path, blueprint: Blueprint) -> tuple[Any, str]:
    """Parameters of a run, a checkpoint, a folder in the Hugging Face layout or a .gguf file, and where they were.

    Raises ConfigError where the model there computes something else than this one, naming the keys with both values.
    """
    if path.suffix != ".gguf" and not (path / "config.json").is_file():
        return load_params(path, blueprint.shapes["params"])
    mine, theirs = blueprint.model_config, interop.read_config(path)
    if type(mine) is not type(theirs):
        raise ConfigError(
            f"init_from={path}: a {type(theirs).__name__} is there; this model is a {type(mine).__name__}"
        )
    if here := unlike(mine, theirs):
        raise ConfigError(
            f"init_from={path}: the model there has {', '.join(unlike(theirs, mine))}; this one {', '.join(here)}"
        )
    return interop.load_params(path, mine, blueprint.shapes["params"]), str(path)
