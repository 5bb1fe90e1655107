"""The train step and the evaluation step: pure functions of arrays, compiled once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from lmkit.core.state import Blueprint, State, evaluation_params, root_key
from lmkit.nn.param import compute_dtype
from lmkit.nn.tree import divide
from lmkit.objectives.build import Batch, Objective
from lmkit.objectives.sums import Sums
from lmkit.parallel.borders import on_each
from lmkit.parallel.rules import DATA, sums_late

Metrics = dict[str, jax.Array]


def make_gradients(
    blueprint: Blueprint, objective: Objective, *, accumulate: int, seed: int
) -> Callable[[State, Batch], tuple[Any, Sums, jax.Array]]:
    """gradients(state, batch) -> (of the trained parameters, the sums, the weight that they are divided by).

    They are those of the mean loss per unit of weight over the whole global batch, whatever the number of devices or
    micro-batches; sums over micro-batches are float32. With several, each device of `data` adds up its own, and they
    are reduced over `data` once, after the last (`_once_over_data`). The objective's sums must be sums over rows then.
    """
    dropout_key = root_key(seed, "dropout")

    def loss(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        sums, _ = objective(blueprint.merge(params, frozen), batch, key if blueprint.model_config.has_dropout else None)
        return sums.loss, sums

    def summed(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Any, Sums]:
        if accumulate == 1:
            return jax.grad(loss, has_aux=True)(params, frozen, batch, key)

        def add(carry, xs):
            micro, index = xs
            one = jax.grad(loss, has_aux=True)(params, frozen, micro, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, carry, one), None

        micros = split_batch(batch, accumulate)
        one = jax.eval_shape(lambda: loss(params, frozen, jax.tree.map(lambda x: x[0], micros), key)[1])
        zeros = (jax.tree.map(jnp.zeros_like, params), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one))
        return jax.lax.scan(add, zeros, (micros, jnp.arange(accumulate)))[0]

    def gradients(state: State, batch: Batch) -> tuple[Any, Sums, jax.Array]:
        key = jax.random.fold_in(dropout_key, state["step"])
        late = sums_late(blueprint.mesh.shape, accumulate)
        run = _once_over_data(blueprint, summed) if late else summed
        grads, sums = run(state["params"], state.get("frozen", {}), batch, key)
        weight = jnp.where(sums.weight > 0, sums.weight, 1.0)  # a batch that weighs nothing has no gradient
        return jax.tree.map(lambda g: g / weight, grads), sums, weight

    return gradients


def _once_over_data(blueprint: Blueprint, summed: Callable) -> Callable:
    """`summed` on the rows of each device of `data`, its results added up over `data` at the end.

    Left to the types of arrays, each micro-batch's gradients would be all-reduced, as a sum over rows is one over all
    devices. Over `fsdp` they still are scattered each time: a device has no room for all of them. What is computed in
    the compute dtype travels in it, as gradients do that are not accumulated.
    """
    dtype = compute_dtype(next(iter(blueprint.model_config.towers().values())).dtype)
    specs, _ = divide(blueprint.specs, blueprint.trainable)
    whole, rows = PartitionSpec(), PartitionSpec(DATA)

    def add_up(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Any, Sums]:
        grads, sums = summed(params, frozen, batch, key)
        travel = jax.tree.map(lambda spec, g: g if spec.exact else g.astype(dtype), specs, grads)
        travel, sums = jax.lax.psum((travel, sums), DATA)
        return jax.tree.map(lambda g, like: g.astype(like.dtype), travel, grads), sums

    shardings = (blueprint.shardings["params"], blueprint.shardings["step"])
    return on_each(DATA, add_up, (whole, whole, rows, whole), whole, shardings)


def make_train_step(
    blueprint: Blueprint, objective: Objective, *, accumulate: int, seed: int
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """step(state, batch) -> (state, metrics), with the gradients of `make_gradients`."""
    gradients = make_gradients(blueprint, objective, accumulate=accumulate, seed=seed)

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        return apply_gradients(blueprint, state, *gradients(state, batch))

    return train_step


def apply_gradients(
    blueprint: Blueprint, state: State, grads: Any, sums: Sums, weight: jax.Array
) -> tuple[State, Metrics]:
    """The state after an update with what `make_gradients` gave, and the step's metrics."""
    number = state["step"]
    params, opt = update_params(blueprint, grads, state["opt"], state["params"])
    new = {**state, "step": number + 1, "params": params, "opt": opt}
    if blueprint.ema:
        new["ema"] = jax.tree.map(lambda old, now: old + (1.0 - blueprint.ema) * (now - old), state["ema"], params)
    return new, {
        "loss": sums.loss / weight,
        "nll": sums.nll / weight,
        "accuracy": sums.correct / weight,
        "weight": sums.weight,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(blueprint.optim.learning_rate(number)),
        **{f"router_{name}": value / weight for name, value in sums.router.items()},
    }


def split_batch(batch: Batch, parts: int) -> Batch:
    """[B, T] to [parts, B / parts, T]; each device keeps its own rows, so nothing moves."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch)


def update_params(blueprint: Blueprint, grads: Any, opt: Any, params: Any) -> tuple[Any, Any]:
    """Optax on the mesh: its own code knows no sharding types, so inside it they are inferred."""

    def update(grads, opt, params):
        updates, opt = blueprint.optim.transform.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    if blueprint.mesh.size == 1:
        return update(grads, opt, params)
    shardings = (blueprint.shardings["params"], blueprint.shardings["opt"])
    inferred: Any = jax.sharding.auto_axes(update, out_sharding=shardings)
    return inferred(grads, opt, params)


def make_eval_step(blueprint: Blueprint, objective: Objective) -> Callable[[State, Batch], tuple[Sums, Any]]:
    """step(state, batch) -> (sums, predictions), without dropout, with the evaluation parameters."""

    def eval_step(state: State, batch: Batch) -> tuple[Sums, Any]:
        return objective(blueprint.merge(evaluation_params(blueprint, state)), batch, None)

    return eval_step
