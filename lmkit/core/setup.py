"""From a configuration to everything the loop needs, in the order in which mistakes are cheapest."""

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from lmkit import hosts
from lmkit.checkpoint import Checkpoints
from lmkit.compiler.programs import has_onednn
from lmkit.config.base import ConfigError
from lmkit.config.entry.process import release_memory
from lmkit.config.experiment import Experiment, check_mesh
from lmkit.config.patterns import covers
from lmkit.config.sections.model import DType, LinearDType, ModelConfig
from lmkit.config.sections.run import Products
from lmkit.core.options import compile_lowered
from lmkit.core.state import Blueprint, State, init_state
from lmkit.core.step import make_eval_step, make_train_step
from lmkit.nn.float8 import check_float8
from lmkit.nn.lora import is_adapter
from lmkit.nn.tree import divide, flat, nested
from lmkit.objectives.build import Batch, build_objective
from lmkit.parallel.devices import devices_here, platform_of, programs_dir
from lmkit.parallel.mesh import build_mesh
from lmkit.weights.base import record_base
from lmkit.weights.load import load_base, load_start

_LONG_FLOPS = 1e13  # of a run, a minute on two cores: from there on oneDNN saves more time than a compilation takes


class Programs(NamedTuple):
    """The compiled train step, the evaluation step, and what the compiler said."""

    train: Any
    evaluate: Any
    memory_bytes: int  # peak on one device, arguments included
    with_onednn: bool = False  # whether the step's products call it
    options: str = ""  # of the step's compiler, where they were chosen, by name
    why: str = ""  # they were, in words


def setup_mesh(experiment: Experiment, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over `devices` (default: all), checked against the batch, the model, and what multiplies there."""
    devices = devices_here() if devices is None else devices
    check_mesh(experiment, len(devices))
    mesh = build_mesh(experiment.mesh, devices)
    if any(part.linear_dtype is LinearDType.float8 for part in experiment.model.towers().values()):
        check_float8()
    if experiment.run.cpu_products is Products.onednn and not _can_call_onednn(experiment.model, mesh):
        where = f"jax {jax.__version__} on {platform_of(mesh)}"
        raise ConfigError(f"run.cpu_products=onednn: {where} does not call it; take jax 0.12 or newer, or auto")
    return mesh


def lower_step(experiment: Experiment, blueprint: Blueprint, shapes: Batch) -> Any:
    """The train step, traced from the shapes of a batch, ready to compile; its devices need not be here."""
    objective, accumulate = build_objective(experiment.objective), experiment.train.accumulate_steps
    step = make_train_step(blueprint, objective, accumulate=accumulate, seed=experiment.run.seed)
    with jax.set_mesh(blueprint.mesh):
        with_onednn = use_onednn(experiment, blueprint, shapes)
        shardings = (blueprint.shardings, None)
        jitted = blueprint.jit(step, with_onednn=with_onednn, donate_argnums=0, out_shardings=shardings)
        return jitted.lower(blueprint.shapes, shapes)


def use_onednn(experiment: Experiment, blueprint: Blueprint, shapes: Batch) -> bool:
    """What run.cpu_products stands for here. It follows from the experiment, so a resumed run goes on as it began."""
    asked, model = experiment.run.cpu_products, blueprint.model_config
    if asked is Products.xla or not _can_call_onednn(model, blueprint.mesh):
        return False
    tokens = max(math.prod(array.shape[:2]) for array in shapes.values()) * experiment.train.steps
    long = 6.0 * blueprint.num_params * tokens >= _LONG_FLOPS
    return asked is Products.onednn or (long and _in_bfloat16(model))


def _can_call_onednn(model: ModelConfig, mesh: Mesh) -> bool:
    return platform_of(mesh) == "cpu" and has_onednn(_in_bfloat16(model))


def _in_bfloat16(model: ModelConfig) -> bool:
    """Whether it asks for products of bfloat16; left to itself a model has them on accelerators alone."""
    return any(part.dtype is DType.bfloat16 for part in model.towers().values())


def compile_programs(experiment: Experiment, blueprint: Blueprint, shapes: Batch) -> Programs:
    """Compiles the train step, once, from the shapes of a batch. The evaluation step compiles at its first use."""
    lowered = lower_step(experiment, blueprint, shapes)
    fastest = compile_lowered(experiment, blueprint, lowered, programs_dir(experiment.run))
    memory = program_bytes(fastest.compiled.memory_analysis(), platform_of(blueprint.mesh))
    evaluate = blueprint.jit(make_eval_step(blueprint, build_objective(experiment.objective)))
    release_memory()
    with_onednn = use_onednn(experiment, blueprint, shapes)
    return Programs(
        fastest.compiled, evaluate, memory, with_onednn, fastest.name if fastest.words else "", fastest.words
    )


def start_compiling(experiment: Experiment, blueprint: Blueprint, shapes: Batch) -> Future[Programs]:
    """`compile_programs` on a thread of its own: meanwhile the state can be made or read."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
    programs = pool.submit(compile_programs, experiment, blueprint, shapes)
    pool.shutdown(wait=False)  # it ends with its one task
    return programs


def program_bytes(analysis: Any, platform: str) -> int:
    """What a compiled program takes of a device at most, arguments included; 0 where the compiler does not tell.

    A TPU's compiler tells its peak, which is less than the sum, as not all temporaries are there at once; others' peaks
    do not count everything.
    """
    if analysis is None:
        return 0
    if platform == "tpu":
        return analysis.peak_memory_in_bytes
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return held + analysis.temp_size_in_bytes


def starting_state(
    experiment: Experiment, blueprint: Blueprint, checkpoints: Checkpoints, folder: Path
) -> tuple[State, int, list[str]]:
    """The state to go on from, its step, and what is worth telling.

    1. The run's own newest good checkpoint; with LoRA, what it adapts comes from `init_from` again.
    2. `init_from`: parameters from there, everything else fresh.
    3. Scratch.

    `folder` is the run's, which remembers what adapters are of.
    """
    whole = nested({path: leaf for path, leaf in flat(blueprint.param_shapes).items() if not is_adapter(path)})
    if (restored := checkpoints.restore(blueprint.shapes)) is not None:
        state, step, skipped = restored
        if blueprint.unsaved:
            base = load_base(folder, blueprint.model_config, whole, experiment.init_from)
            state["frozen"] = divide(base.params, blueprint.trainable)[1]
        return state, step, [*skipped, f"resumed at step {step}"]
    found = load_start(experiment.init_from, blueprint.model_config, whole) if experiment.init_from else None
    if found is not None:
        check_fresh(found.fresh, blueprint)
    state = init_state(blueprint, experiment.run.seed, None if found is None else found.params)
    if found is None:
        return state, 0, []
    if blueprint.unsaved and hosts.is_first():
        record_base(folder, experiment.init_from, found.path, blueprint.lora.scale)
    share = f"{blueprint.num_trainable:,} of {blueprint.num_params:,} parameters train"
    return state, 0, [*found.messages(), *([share] if "frozen" in state else [])]


def check_fresh(fresh: list[str], blueprint: Blueprint) -> None:
    """Raises ConfigError where a head that starts afresh would never train."""
    idle = [head for head in fresh if any(covers(head, path) for path in flat(blueprint.shapes.get("frozen", {})))]
    if idle:
        way = f"set lora.train=[{', '.join(idle)}]" if blueprint.lora.rank else "take it out of optim.freeze"
        raise ConfigError(f"init_from has no {', '.join(idle)} that fits: it starts afresh, but it is frozen; {way}")
