"""The same step twice, and how far apart the results are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmkit.config.experiment import Experiment
from lmkit.core.inputs import Arrays
from lmkit.core.state import Blueprint, State, init_state, make_blueprint
from lmkit.core.step import apply_gradients, make_gradients
from lmkit.data.loader import array_sharding
from lmkit.nn.tree import flat
from lmkit.objectives.build import build_objective

# Rounding in float32 is 6e-8; sums over a few thousand terms in another order add up to some 1e-6.
LOSS, GRADIENT = 1e-5, 1e-4
# Adam divides a gradient by its own size: where it is mere rounding, the update's sign is, too. So updates are judged
# by their root mean square.
UPDATE = 1e-2
_NOISE = 1e-4  # of the largest gradient: what is smaller is not told from rounding
_ORDER = ("embed", "input", "frontend", "patches", "class_token", "encoder", "first", "stack", "decoder")  # as they run


class Result(NamedTuple):
    """One step's numbers, on the host, by dotted path."""

    loss: float
    gradients: dict[str, np.ndarray]
    updates: dict[str, np.ndarray]
    program: str  # the compiled step
    blueprint: Blueprint


class Row(NamedTuple):
    """One line of the verdict."""

    quantity: str
    difference: float
    tolerance: float
    reason: str
    where: str = ""

    @property
    def equal(self) -> bool:
        return self.difference <= self.tolerance  # not for NaN


def run_step(experiment: Experiment, model: Any, batch: Arrays, mesh: jax.sharding.Mesh) -> Result:
    """One step from the experiment's own initial state on a mesh."""
    blueprint = make_blueprint(model, experiment.optim, experiment.train.steps, mesh, experiment.lora)
    options = {"accumulate": experiment.train.accumulate_steps, "seed": experiment.run.seed}
    objective = build_objective(experiment.objective)
    state = init_state(blueprint, experiment.run.seed)
    arrays = {name: jax.device_put(x, array_sharding(name, x.shape, mesh)) for name, x in batch.items()}
    gradients = make_gradients(blueprint, objective, **options)

    def step(state: State, batch: Any) -> Any:
        grads, sums, weight = gradients(state, batch)
        new, metrics = apply_gradients(blueprint, state, grads, sums, weight)
        return new, grads, metrics["loss"]

    # the tolerances are those of float32 products, which a GPU or a TPU does not compute by default
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        places = (blueprint.shardings, blueprint.shardings["params"], None)
        compiled = blueprint.jit(step, out_shardings=places).lower(state, arrays).compile()
        new, grads, loss = compiled(state, arrays)
    return Result(float(loss), _host(grads), _moved(blueprint, state, new), compiled.as_text() or "", blueprint)


def _moved(blueprint: Blueprint, old: Any, new: Any) -> dict[str, np.ndarray]:
    before, after = _host(old["params"]), _host(new["params"])
    return {path: after[path] - before[path] for path in before}


def _host(tree: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(jnp.asarray(leaf)) for path, leaf in flat(tree).items()}


def compare(one: Result, many: Result) -> list[Row]:
    """Loss, gradients and updated parameters, each with its worst; where gradients depart, also the first that does."""
    top = max((float(np.max(np.abs(g))) for g in one.gradients.values()), default=0.0)
    gradients = {
        path: _largest(value, many.gradients[path], floor=_NOISE * top) for path, value in one.gradients.items()
    }
    # What has no gradient but rounding (a bias that softmax cancels) is moved by Adam all the same, somewhere.
    moved = [path for path, value in one.gradients.items() if np.max(np.abs(value)) > _NOISE * top]
    updates = {path: _mean_square(one.updates[path], many.updates[path]) for path in moved or one.updates}
    rows = [Row("loss", abs(many.loss - one.loss) / max(abs(one.loss), 1e-12), LOSS, "float32 sums in another order")]
    for name, found, tolerance, reason in (
        ("gradients", gradients, GRADIENT, "the same, through the backward pass"),
        ("updated parameters", updates, UPDATE, "the optimiser divides by small numbers"),
    ):
        worst = max(found, key=lambda path: np.nan_to_num(found[path], nan=np.inf))
        rows.append(Row(name, found[worst], tolerance, reason, worst))
    return rows


def first_departing(one: Result, many: Result) -> str:
    """The first parameter, in the order in which the model runs, whose gradient departs; "" where none does."""
    top = max((float(np.max(np.abs(g))) for g in one.gradients.values()), default=0.0)
    paths = sorted(one.gradients, key=lambda path: (_place(path), path))
    return next(
        (p for p in paths if not _largest(one.gradients[p], many.gradients[p], floor=_NOISE * top) <= GRADIENT), ""
    )


def _place(path: str) -> int:
    head = path.split(".")[0]
    return _ORDER.index(head) if head in _ORDER else len(_ORDER)


def _largest(one: np.ndarray, many: np.ndarray, floor: float) -> float:
    """Largest difference over the largest value, which counts as `floor` at least."""
    return float(np.max(np.abs(many - one)) / max(float(np.max(np.abs(one))), floor, 1e-30))


def _mean_square(one: np.ndarray, many: np.ndarray) -> float:
    scale = float(np.sqrt(np.mean(np.square(one))))
    return float(np.sqrt(np.mean(np.square(many - one)))) / scale if scale else float(np.max(np.abs(many)))
