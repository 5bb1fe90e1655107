"""Schedules, decay masks, Muon's matrices, every rule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import tiny_config, tiny_experiment, train_steps
from lmkit.compiler.collectives import collectives
from lmkit.config.base import ConfigError
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.optim import OptimConfig, Optimizer, ParamKind, Schedule
from lmkit.core.state import evaluation_params, make_blueprint
from lmkit.core.step import update_params
from lmkit.models import GPT
from lmkit.nn.param import ParamSpec, param_specs
from lmkit.optim import build_optim, make_schedule
from lmkit.parallel.mesh import build_mesh


@pytest.mark.parametrize(("schedule", "expected"), [
    (Schedule.constant, {0: 0.1, 9: 1.0, 50: 1.0, 99: 1.0}),
    (Schedule.linear, {0: 0.1, 9: 1.0, 54: 0.6, 99: 0.2}),
    (Schedule.cosine, {9: 1.0, 54: 0.6, 99: 0.2}),
    (Schedule.wsd, {10: 1.0, 79: 1.0, 89: 0.6, 99: 0.2}),
])  # fmt: skip
def test_schedules(schedule: Schedule, expected: dict[int, float]) -> None:
    config = OptimConfig(schedule=schedule, warmup_steps=10, decay_share=0.2, final_ratio=0.2)
    rate = make_schedule(config, 100, 1.0)
    assert {step: round(float(rate(step)), 4) for step in expected} == expected


@pytest.mark.parametrize("schedule", [Schedule.linear, Schedule.cosine, Schedule.wsd])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 2), (0, 10), (1, 2), (1, 10), (2, 10), (9, 10), (50, 99), (90, 99)])
def test_a_decaying_schedule_ends_at_its_final_rate(schedule: Schedule, warmup: int, steps: int) -> None:
    """The last step of a run is number steps - 1, whatever the warm-up leaves."""
    config = OptimConfig(schedule=schedule, warmup_steps=warmup, decay_share=0.8, final_ratio=0.0)
    rates = [float(make_schedule(config, steps, 1.0)(step)) for step in range(steps)]
    assert rates[-1] == pytest.approx(0.0, abs=1e-6)
    compiled = jax.jit(jax.vmap(make_schedule(config, steps, 1.0)))(np.arange(steps))
    assert float(compiled.min()) >= 0.0, "no rounding makes a step climb"
    assert max(rates) == rates[max(warmup - 1, 0)] == 1.0, "the peak is reached where the warm-up ends"
    assert rates[0] == pytest.approx(1.0 / max(warmup, 1), rel=1e-5), "the first step learns"


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
    losses, _, _ = train_steps(tiny_experiment(f"optim={kind.name}", f"optim.learning_rate={rate}"), 8, num_devices=1)
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


@pytest.mark.parametrize("mesh", [{"fsdp": 4, "tensor": 2}, {"fsdp": 8}, {"expert": 2, "fsdp": 2, "tensor": 2}])
def test_muons_update_is_the_same_where_matrices_are_dealt_out(mesh: dict[str, int]) -> None:
    """Some pools fill their devices, some do not, and the router is one matrix of which every device takes all."""
    config = GPTConfig(vocab_size=8, num_layers=3, num_heads=4, num_kv_heads=2, embed_dim=16, num_experts=2)
    optim = OptimConfig(kind=Optimizer.muon, warmup_steps=0, schedule=Schedule.constant)
    made = {}
    for sizes in ({}, mesh):
        devices = jax.devices()[: math.prod(sizes.values())]
        blueprint = make_blueprint(config, optim, 10, build_mesh(MeshConfig(**({"data": 1} | sizes)), devices))
        rng = np.random.default_rng(0)
        state = jax.tree.map(
            lambda leaf, rng=rng: jax.device_put(rng.standard_normal(leaf.shape).astype(leaf.dtype), leaf.sharding),
            blueprint.shapes["params"],
        )
        opt = jax.jit(blueprint.optim.transform.init, out_shardings=blueprint.shardings["opt"])(state)
        with jax.set_mesh(blueprint.mesh):
            update = jax.jit(lambda params, opt, made=blueprint: update_params(made, params, opt, params)[0])
            lines = update.lower(state, opt).compile()
            made[str(sizes)] = lines(state, opt)
        if sizes:
            kinds = {
                one.kind for one in collectives(lines.as_text() or "", blueprint.mesh.shape) if one.sent_bytes > 64
            }
            assert "all-to-all" in kinds
            assert kinds <= {"all-to-all", "all-gather"}
    for one, many in zip(*(jax.tree.leaves(jax.device_get(tree)) for tree in made.values()), strict=True):
        np.testing.assert_allclose(one, many, atol=2e-6)


def test_adamw_by_hand() -> None:
    """Two steps (Loshchilov and Hutter 2019, algorithm 2) of gradients that are clipped to a norm of 1 first."""
    config = OptimConfig(
        kind=Optimizer.adamw, learning_rate=0.5, beta1=0.8, beta2=0.9, eps=0.01, weight_decay=0.1, clip_norm=1.0,
        warmup_steps=2, schedule=Schedule.constant, decay=[ParamKind.matrix],
    )  # fmt: skip
    specs = {
        "w": ParamSpec((2, 2), ("embed", "mlp"), ParamKind.matrix, 1),
        "b": ParamSpec((2,), ("norm",), ParamKind.vector, 0),
    }
    params = {"w": np.array([[1.0, -2.0], [3.0, 0.5]]), "b": np.array([1.0, 2.0])}
    grads = {"w": np.array([[3.0, -1.0], [0.0, 2.0]]), "b": np.array([1.0, -4.0])}
    transform = build_optim(config, 100, specs).transform
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second, got = dict(first), jax.tree.map(jnp.float32, params)
    state, update = transform.init(got), jax.jit(transform.update)
    for step in (1, 2):
        updates, state = update(jax.tree.map(lambda g, n=step: jnp.float32(g * n + 1), grads), state, got)
        got = jax.tree.map(jnp.add, got, updates)
        norm = np.sqrt(sum(np.sum((g * step + 1) ** 2) for g in grads.values()))
        for name, p in params.items():
            g = (grads[name] * step + 1) / norm
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.9 * second[name] + 0.1 * g**2
            move = first[name] / (1 - 0.8**step) / (np.sqrt(second[name] / (1 - 0.9**step)) + 0.01)
            params[name] = p - 0.25 * step * (move + 0.1 * p * (name == "w"))  # the rate of step 1 is half of the peak
            np.testing.assert_allclose(got[name], params[name], rtol=1e-5)  # float32 against float64


TINY_SPECS = {
    "w": ParamSpec((2, 2), ("embed", "mlp"), ParamKind.matrix, 1),
    "b": ParamSpec((2,), ("norm",), ParamKind.vector, 0),
}


@pytest.mark.parametrize("kind", list(Optimizer))
def test_every_rule_uses_the_rate_that_it_reports_and_decays_what_it_is_told(kind: Optimizer) -> None:
    """With no gradient a step is the decay, rate x weight_decay x p: of matrices alone, by the rate that is logged."""
    free = kind is Optimizer.schedule_free_adamw
    config = OptimConfig(
        kind=kind, learning_rate=0.5, weight_decay=0.1, warmup_steps=3,
        schedule=Schedule.constant if free else Schedule.linear,
    )  # fmt: skip
    optim = build_optim(config, 8, TINY_SPECS)
    params = {"w": jnp.full((2, 2), 2.0), "b": jnp.full(2, 3.0)}
    zero = jax.tree.map(jnp.zeros_like, params)
    state, moved = optim.transform.init(params), []
    for step in range(8):
        before = state[-1].z["w"][0, 0] if free else params["w"][0, 0]  # what the rule itself moves
        updates, state = optim.transform.update(zero, state, params)
        after = state[-1].z["w"][0, 0] if free else (params["w"] + updates["w"])[0, 0]
        moved.append(float((before - after) / params["w"][0, 0] / 0.1 / optim.learning_rate(step)))
        params = jax.tree.map(jnp.add, params, updates)
    rates = [float(optim.learning_rate(step)) for step in range(8)]
    np.testing.assert_allclose(moved[: 8 - (rates[-1] == 0)], 1.0, rtol=1e-3)
    np.testing.assert_allclose(params["b"], 3.0, rtol=1e-6)
    there = optim.evaluation_params(state, params)
    np.testing.assert_allclose(there["b"], 3.0, rtol=1e-6)
    assert bool((there["w"] != params["w"]).any()) == free, "only the schedule-free rule evaluates elsewhere"


def test_a_schedule_free_rule_follows_no_schedule() -> None:
    with pytest.raises(ConfigError, match="optim.schedule=cosine with optim.kind=schedule_free_adamw.*constant"):
        OptimConfig(kind=Optimizer.schedule_free_adamw)
    with pytest.raises(ConfigError, match="optim.beta1=0.0 with optim.kind=schedule_free_adamw"):
        OptimConfig(kind=Optimizer.schedule_free_adamw, schedule=Schedule.constant, beta1=0.0)


def test_parts_have_rates_of_their_own() -> None:
    """The factor of a part is on its step and on its decay; what no pattern matches keeps the plain rate."""
    config = OptimConfig(
        kind=Optimizer.sgd, learning_rate=0.5, momentum=0.0, weight_decay=0.1, clip_norm=0.0, warmup_steps=0,
        schedule=Schedule.constant, decay=[ParamKind.matrix], rates={"head": 0.25, "head.b": 4.0},
    )  # fmt: skip
    matrix, vector = (ParamSpec((2,), ("norm",), kind, 0) for kind in (ParamKind.matrix, ParamKind.vector))
    transform = build_optim(config, 100, {"head": {"w": matrix, "b": vector}, "stack": {"w": matrix}}).transform
    params = {"head": {"w": np.float32([1, 2]), "b": np.float32([1, 2])}, "stack": {"w": np.float32([1, 2])}}
    ones = jax.tree.map(np.ones_like, params)
    updates, _ = jax.jit(transform.update)(ones, transform.init(params), params)
    decayed = -0.5 * np.array([1.1, 1.2])
    np.testing.assert_allclose(updates["head"]["w"], 0.25 * decayed, rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["b"], [-2.0, -2.0], rtol=1e-6)
    np.testing.assert_allclose(updates["stack"]["w"], decayed, rtol=1e-6)


def test_the_average_lags_behind() -> None:
    _, state, blueprint = train_steps(tiny_experiment("optim.ema=0.5"), 4, num_devices=1)
    assert evaluation_params(blueprint, state) is state["ema"]
    assert not np.allclose(state["ema"]["embed"]["table"], state["params"]["embed"]["table"], atol=1e-6)
    for average, now in zip(jax.tree.leaves(state["ema"]), jax.tree.leaves(state["params"]), strict=True):
        # It begins at the first parameters, and a step of Adam is no longer than the rate: 0.0006 x (1 + 2 + 3 + 4).
        np.testing.assert_allclose(average, now, atol=0.007)


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
