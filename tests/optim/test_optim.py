"""Schedules, decay masks, Muon's matrices, every rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import tiny_config, tiny_experiment, train_steps
from lmkit.config.sections.optim import OptimConfig, Optimizer, ParamKind, Schedule
from lmkit.core.state import evaluation_params
from lmkit.models import GPT
from lmkit.nn.param import param_specs
from lmkit.optim import build_optim, make_schedule


@pytest.mark.parametrize(("schedule", "expected"), [
    (Schedule.constant, {0: 0.1, 9: 1.0, 50: 1.0, 100: 1.0}),
    (Schedule.linear, {9: 1.0, 10: 1.0, 55: 0.6, 100: 0.2}),
    (Schedule.cosine, {10: 1.0, 55: 0.6, 100: 0.2}),
    (Schedule.wsd, {10: 1.0, 75: 1.0, 90: 0.6, 100: 0.2}),
])  # fmt: skip
def test_schedules(schedule: Schedule, expected: dict[int, float]) -> None:
    config = OptimConfig(schedule=schedule, warmup_steps=10, decay_share=0.2, final_ratio=0.2)
    rate = make_schedule(config, 100, 1.0)
    assert {step: round(float(rate(step)), 4) for step in expected} == expected


def test_no_warmup() -> None:
    assert float(make_schedule(OptimConfig(warmup_steps=0), 100, 0.5)(0)) == 0.5


def specs_and_params():
    model = GPT(tiny_config(bias=True), rngs=nnx.Rngs(0))
    state = nnx.split(model)[1]
    return param_specs(state), nnx.to_pure_dict(state)


def updates_for(config: OptimConfig, gradient_scale: float = 0.0):
    specs, params = specs_and_params()
    optim = build_optim(config, 100, specs)
    grads = jax.tree.map(lambda p: gradient_scale * jax.random.normal(jax.random.key(p.size), p.shape), params)
    updates, _ = jax.jit(optim.transform.update)(grads, optim.transform.init(params), params)
    return specs, params, updates


@pytest.mark.parametrize("kind", [Optimizer.adamw, Optimizer.lion, Optimizer.sgd, Optimizer.muon, Optimizer.adafactor])
def test_only_the_kinds_asked_for_decay(kind: Optimizer) -> None:
    """With zero gradients an update is the decay: -rate * weight_decay * p."""
    config = OptimConfig(
        kind=kind,
        learning_rate=0.5,
        adam_learning_rate=0.5,
        weight_decay=0.1,
        warmup_steps=0,
        schedule=Schedule.constant,
        decay=[ParamKind.matrix],
    )
    specs, params, updates = updates_for(config)
    for spec, p, u in zip(*(jax.tree.leaves(t) for t in (specs, params, updates)), strict=True):
        expected = -0.05 * p if spec.kind is ParamKind.matrix else 0.0 * p
        np.testing.assert_allclose(u, expected, atol=1e-7)


def test_muon_orthogonalises_each_matrix_and_nothing_else() -> None:
    config = OptimConfig(
        kind=Optimizer.muon, learning_rate=1.0, adam_learning_rate=0.0, weight_decay=0.0, warmup_steps=0,
        schedule=Schedule.constant, clip_norm=0.0,
    )  # fmt: skip
    specs, _, updates = updates_for(config, gradient_scale=1.0)
    for spec, update in zip(jax.tree.leaves(specs), jax.tree.leaves(updates), strict=True):
        if spec.kind is not ParamKind.matrix:
            np.testing.assert_array_equal(update, 0)
            continue
        inputs = int(np.prod(spec.shape[1 : 1 + spec.num_in]))
        for layer in np.asarray(update).reshape(spec.shape[0], inputs, -1):
            singular = np.linalg.svd(layer, compute_uv=False) / max(1.0, layer.shape[1] / inputs) ** 0.5
            assert singular.max() < 1.3, f"{spec.dims}: not orthogonalised"
            assert np.median(singular) > 0.6, f"{spec.dims}: not orthogonalised"


@pytest.mark.parametrize("kind", list(Optimizer))
def test_every_rule_learns(kind: Optimizer) -> None:
    rate = {Optimizer.sgd: 0.1, Optimizer.lion: 1e-3, Optimizer.muon: 0.02}.get(kind, 3e-3)
    losses, _, _ = train_steps(
        tiny_experiment(f"optim.kind={kind.name}", f"optim.learning_rate={rate}"), 8, num_devices=1
    )
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("kind", [Optimizer.muon, Optimizer.adafactor])
def test_rules_that_mix_elements_are_equal_on_a_mesh(kind: Optimizer) -> None:
    overrides = [f"optim.kind={kind.name}", "optim.learning_rate=0.01"]
    one, _, _ = train_steps(tiny_experiment(*overrides), 5, num_devices=1)
    many, _, blueprint = train_steps(tiny_experiment(*overrides, "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"), 5)
    # Newton-Schulz in float32 amplifies rounding a little
    np.testing.assert_allclose(one, many, rtol=2e-5)
    moments = [leaf.sharding.spec for leaf in jax.tree.leaves(blueprint.shapes["opt"]) if leaf.ndim > 2]
    if kind is Optimizer.muon:
        assert moments
        assert all(any(spec) for spec in moments), "moments are sharded like their parameters"


def test_the_average_lags_behind() -> None:
    _, state, blueprint = train_steps(tiny_experiment("optim.ema=0.5"), 4, num_devices=1)
    assert evaluation_params(blueprint, state) is state["ema"]
    assert not np.allclose(state["ema"]["embed"]["table"], state["params"]["embed"]["table"], atol=1e-6)


def test_schedule_free_evaluates_elsewhere_than_it_trains() -> None:
    _, state, blueprint = train_steps(
        tiny_experiment("optim=schedule_free_adamw", "optim.learning_rate=0.01"), 6, num_devices=1
    )
    there = evaluation_params(blueprint, state)["embed"]["table"]
    assert jnp.isfinite(there).all()
    assert not np.allclose(there, state["params"]["embed"]["table"], atol=1e-6)


def test_clipping_bounds_the_gradient() -> None:
    def sgd(clip: float) -> float:
        config = OptimConfig(kind=Optimizer.sgd, learning_rate=1.0, momentum=0.0, weight_decay=0.0, warmup_steps=0,
                             schedule=Schedule.constant, clip_norm=clip)  # fmt: skip
        _, _, updates = updates_for(config, gradient_scale=10.0)
        return float(jnp.sqrt(sum(jnp.sum(jnp.square(u)) for u in jax.tree.leaves(updates))))

    assert sgd(1.0) == pytest.approx(1.0, rel=1e-3)
    assert sgd(0.0) > 100
