"""The mixture of experts equals its formula, with its gradients, on every mesh; its sums are those of its tokens."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from helpers import params_of, tiny_config, tiny_model
from lmkit.config import ConfigError
from lmkit.config.sections.families import CLIPConfig, GPTConfig, ViTConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.model import Remat
from lmkit.config.sections.objective import ObjectiveConfig
from lmkit.config.sections.optim import OptimConfig
from lmkit.core.state import init_state, make_blueprint
from lmkit.core.step import make_train_step
from lmkit.nn.attention import LayerInputs
from lmkit.nn.auxiliary import collecting
from lmkit.nn.cache import LayerCache
from lmkit.nn.moe import MoE, capacity_of
from lmkit.nn.param import param_specs
from lmkit.objectives import build_objective
from lmkit.objectives.router import router_figures
from lmkit.parallel.mesh import AXES, build_mesh
from lmkit.parallel.rules import gathered_dims, sharding_of

X = jax.random.normal(jax.random.key(0), (3, 10, 64))
MESHES = {
    "expert2_fsdp2_tensor2": {"expert": 2, "fsdp": 2, "tensor": 2},
    "data2_expert4": {"data": 2, "expert": 4},
    "expert2_context2_tensor2": {"expert": 2, "context": 2, "tensor": 2},
    "context4_fsdp2": {"context": 4, "fsdp": 2},
}


def make(seed: int = 0, **changes: Any) -> tuple[nnx.GraphDef, dict]:
    """A mixture whose router is far from uniform."""
    graph, params = params_of(MoE(tiny_config(**changes), residual_std=0.3, rngs=nnx.Rngs(seed)))
    params["router"]["kernel"] *= 30
    return graph, params


def routing(model: MoE, x) -> tuple[jax.Array, np.ndarray]:
    """The router's probabilities and which experts are chosen and have room, token by token."""
    probabilities = jax.nn.softmax(x @ model.router.kernel[...], axis=-1)
    fits = np.zeros(probabilities.shape, np.float32)
    chosen = np.argsort(-np.asarray(probabilities), axis=-1)[..., : model.config.experts_per_token]
    room = capacity_of(model.config, x.shape[1]) or x.shape[1]
    for row in range(x.shape[0]):
        taken = np.zeros(probabilities.shape[-1])
        for place in range(x.shape[1]):
            for expert in chosen[row, place]:
                fits[row, place, expert] = taken[expert] < room
                taken[expert] += 1
    return probabilities, fits


def dense(model: MoE, x, fits):
    """Every expert on every token, weighted by the router's choice, and by whether there is room."""
    probabilities = jax.nn.softmax(x @ model.router.kernel[...], axis=-1)
    chosen = jnp.argsort(-probabilities, axis=-1)[..., : model.config.experts_per_token]
    weights = probabilities * jax.nn.one_hot(chosen, probabilities.shape[-1]).sum(-2)
    if model.config.renormalize_experts:
        weights = weights / weights.sum(-1, keepdims=True)
    up = jnp.einsum("btd,edf->btef", x, model.up[...])
    hidden = up if model.gate is None else jax.nn.silu(jnp.einsum("btd,edf->btef", x, model.gate[...])) * up
    hidden = jax.nn.silu(up) if model.gate is None else hidden
    y = jnp.einsum("btef,efd,bte->btd", hidden, model.down[...], weights * fits)
    if model.shared is None:
        return y
    shared = jax.nn.silu(x @ model.shared.up.kernel[...])
    return y + shared @ model.shared.down.kernel[...]


@pytest.mark.parametrize(("gated", "changes"), [
    (True, {"renormalize_experts": True}),
    (False, {"renormalize_experts": False}),
    (True, {"renormalize_experts": False, "capacity_factor": 0.7}),
    (False, {"renormalize_experts": True, "capacity_factor": 0.7, "shared_experts": 2}),
])  # fmt: skip
def test_equals_the_dense_formula(gated: bool, changes: dict) -> None:
    graph, params = make(num_experts=5, experts_per_token=3, gated=gated, mlp_dim=48, **changes)
    _, fits = routing(nnx.merge(graph, nnx.State(params)), X)
    assert fits.sum() == X[..., 0].size * 3 or "capacity_factor" in changes
    assert fits.sum() < X[..., 0].size * 3 or "capacity_factor" not in changes, "nothing is dropped: no test"

    def value(function):
        def loss(params, x):
            return jnp.sum(jnp.sin(function(nnx.merge(graph, nnx.State(params)), x)))

        return jax.grad(loss, argnums=(0, 1))(params, X), function(nnx.merge(graph, nnx.State(params)), X)

    pairs = zip(*(jax.tree.leaves(value(f)) for f in (lambda m, x: dense(m, x, fits), lambda m, x: m(x))), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()) + 1e-7)


def to_one_expert(**changes: Any) -> tuple[MoE, jax.Array]:
    config = tiny_config(num_experts=4, experts_per_token=1, mlp_dim=32, **changes)
    model = MoE(config, residual_std=0.3, rngs=nnx.Rngs(0))
    model.router.kernel[...] = jnp.zeros((64, 4)).at[:, 2].set(1.0)
    x = jnp.abs(X)
    return model, jax.nn.silu(x @ model.up[...][2]) @ model.down[...][2]


def test_all_tokens_to_one_expert_drops_none() -> None:
    model, expected = to_one_expert()
    np.testing.assert_allclose(model(jnp.abs(X)), expected, rtol=1e-4, atol=1e-5)


def test_earlier_tokens_win_and_decoding_drops_none() -> None:
    """1.5 x 10 tokens / 4 experts: room for 4 of each row."""
    model, expected = to_one_expert(capacity_factor=1.5)
    y = model(jnp.abs(X))
    np.testing.assert_allclose(y[:, :4], expected[:, :4], rtol=1e-4, atol=1e-5)
    assert not y[:, 4:].any()
    np.testing.assert_allclose(model(jnp.abs(X), LayerInputs(layer_cache=LayerCache())), expected, rtol=1e-4, atol=1e-5)


def test_what_is_dropped_depends_on_the_past_alone() -> None:
    graph, params = make(num_experts=4, capacity_factor=0.8)
    model = nnx.merge(graph, nnx.State(params))
    other = X.at[:, 6:].set(jax.random.normal(jax.random.key(1), X[:, 6:].shape))
    np.testing.assert_allclose(model(X)[:, :6], model(other)[:, :6], rtol=1e-5, atol=1e-6)
    assert not np.allclose(model(X)[:, 6:], model(other)[:, 6:], atol=1e-2)


@pytest.mark.parametrize(("factor", "seq", "expected"), [
    (1.0, 8, 4), (1.1, 40, 22), (1.25, 10, 7), (100.0, 8, 8), (0.01, 8, 1), (0.0, 8, 0),
])  # fmt: skip
def test_capacity(factor: float, seq: int, expected: int) -> None:
    """ceil(factor k T / E), of two of four experts; never more than there are tokens."""
    assert capacity_of(tiny_config(num_experts=4, capacity_factor=factor), seq) == expected


# sums, losses and figures


def test_sums_are_those_of_the_tokens() -> None:
    graph, params = make(num_experts=4, capacity_factor=0.8)
    model, inputs = nnx.merge(graph, nnx.State(params)), LayerInputs(auxiliary={})
    model(X, inputs)
    probabilities, fits = routing(model, X)
    chosen = np.argsort(-np.asarray(probabilities), axis=-1)[..., :2]
    log_z = np.log(np.sum(np.exp(np.asarray(X @ params["router"]["kernel"], np.float64)), axis=-1))
    expected = {
        "chosen": np.bincount(chosen.ravel(), minlength=4),
        "probability": np.sum(probabilities, axis=(0, 1)),
        "z": np.sum(log_z**2),
        "dropped": 60 - fits.sum(),
        "tokens": 30,
    }
    assert set(expected) == set(inputs.auxiliary or ())
    for name, value in (inputs.auxiliary or {}).items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)


def test_the_router_computes_in_float32() -> None:
    """Of an input in bfloat16: logits that were rounded would choose other experts."""
    graph, params = make(num_experts=4)
    model, inputs, x = nnx.merge(graph, nnx.State(params)), LayerInputs(auxiliary={}), X.astype(jnp.bfloat16)
    model(x, inputs)
    logits = np.asarray(x.astype(jnp.float32) @ params["router"]["kernel"], np.float64)
    expected = np.sum(np.log(np.sum(np.exp(logits), axis=-1)) ** 2)
    np.testing.assert_allclose((inputs.auxiliary or {})["z"], expected, rtol=1e-5)


def test_figures_of_two_layers_by_hand() -> None:
    """Four tokens, two choices each, three experts; the second layer's load is even."""
    auxiliary = {
        "chosen": jnp.array([[4.0, 3.0, 1.0], [8 / 3, 8 / 3, 8 / 3]]),
        "probability": jnp.array([[2.0, 1.5, 0.5], [1.0, 1.0, 2.0]]),
        "z": jnp.array([8.0, 2.0]),
        "dropped": jnp.array([2.0, 0.0]),
        "tokens": jnp.array([4.0, 4.0]),
    }
    found = router_figures([auxiliary])
    first = 3 * (4 / 8 * 2 / 4 + 3 / 8 * 1.5 / 4 + 1 / 8 * 0.5 / 4)
    expected = {"balance": (first + 1) / 2, "z": (2 + 0.5) / 2, "dropped": 0.125, "max_load": 3 * 4 / 8}
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    stacks = [{name: value[i : i + 1] for name, value in auxiliary.items()} for i in range(2)]
    for name, value in router_figures(stacks).items():
        np.testing.assert_allclose(value, found[name], rtol=1e-6)


def test_the_loss_gains_them_and_nothing_else_does() -> None:
    batch = {
        "inputs": jax.random.randint(jax.random.key(1), (2, 16), 0, 256),
        "targets": jnp.zeros((2, 16), jnp.int32),
        "weights": jnp.ones((2, 16)).at[0, :5].set(0.0),
    }
    objective = build_objective(ObjectiveConfig())
    plain, _ = objective(tiny_model(num_experts=4), batch, None)
    sums, _ = objective(tiny_model(num_experts=4, balance_loss=0.5, router_z_loss=0.25), batch, None)
    for name in ("weight", "nll", "correct"):
        assert getattr(sums, name) == getattr(plain, name)
    added = 0.5 * sums.router["balance"] + 0.25 * sums.router["z"]  # both are weighted already
    assert added > 0.5 * 27
    np.testing.assert_allclose(sums.loss - plain.loss, added, rtol=1e-4)
    assert objective(tiny_model(), batch, None)[0].router == {}


@pytest.mark.parametrize("how", [{"scan_layers": False}, {"remat": Remat.full}, {"remat": Remat.dots}])
def test_a_stack_hands_out_each_layers_sums(how: dict) -> None:
    tokens = jax.random.randint(jax.random.key(1), (2, 16), 0, 256)

    def sums(model):
        with collecting() as auxiliary:
            model.hidden(tokens)
        (one,) = auxiliary
        return one

    expected = sums(tiny_model(num_experts=4, num_layers=3))
    assert expected["chosen"].shape == (3, 4)
    for name, value in jax.jit(sums)(tiny_model(num_experts=4, num_layers=3, **how)).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)


def mesh_of(**sizes: int) -> Mesh:
    shape = [sizes.get(axis, 1) for axis in AXES]
    devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


@pytest.mark.parametrize("factor", [0.0, 0.8])
@pytest.mark.parametrize("name", MESHES)
def test_sharded_equals_unsharded(name: str, factor: float) -> None:
    """Value, gradients and sums; with the losses on, so that theirs are in it."""
    config = tiny_config(num_experts=4, capacity_factor=factor, gated=True, mlp_dim=32, shared_experts=1)
    graph, params = make(num_experts=4, capacity_factor=factor, gated=True, mlp_dim=32, shared_experts=1)
    specs = param_specs(nnx.split(nnx.eval_shape(lambda: MoE(config, residual_std=0.3, rngs=nnx.Rngs(0))))[1])
    x = jax.random.normal(jax.random.key(2), (8, 16, 64))

    def run(params, x):
        auxiliary = {}
        y = nnx.merge(graph, nnx.State(params))(x, LayerInputs(auxiliary=auxiliary))
        figures = router_figures([{name: value[None] for name, value in auxiliary.items()}])
        return jnp.sum(jnp.sin(y)) + 5 * figures["balance"] + figures["z"], (y, auxiliary)

    step = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
    expected = step(params, x)
    assert (expected[0][1][1]["dropped"] > 0) == (factor > 0)
    mesh = mesh_of(**MESHES[name])
    placed = jax.tree.map(lambda v, s: jax.device_put(v, sharding_of(s.dims, mesh, s.shape)), params, specs)
    with jax.set_mesh(mesh):
        found = step(placed, jax.device_put(x, sharding_of(gathered_dims(16), mesh)))
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        scale = float(jnp.abs(a).max())
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))


def test_a_length_that_tensor_does_not_divide() -> None:
    """The experts' parts of each token are then summed over `tensor` instead of scattered along the sequence."""
    sizes = {"num_heads": 1, "embed_dim": 8, "num_experts": 2, "mlp_dim": 8, "capacity_factor": 2.0}
    graph, params = make(**sizes)
    specs = param_specs(nnx.split(nnx.eval_shape(lambda: nnx.merge(graph, nnx.State(params))))[1])
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    run = jax.jit(lambda params, x: nnx.merge(graph, nnx.State(params))(x))
    expected, mesh = run(params, x), mesh_of(tensor=2)
    placed = jax.tree.map(lambda v, s: jax.device_put(v, sharding_of(s.dims, mesh, s.shape)), params, specs)
    with jax.set_mesh(mesh):
        found = run(placed, jax.device_put(x, sharding_of(gathered_dims(5), mesh)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32: sums in another order


def train(balance: float, accumulate: int = 1) -> tuple[list[dict], Any]:
    """A tiny model on one device, whose routers begin far from even."""
    config = tiny_config(
        num_layers=1, embed_dim=32, num_experts=8, experts_per_token=1, mlp_dim=32, balance_loss=balance
    )
    optim = OptimConfig(learning_rate=3e-3, warmup_steps=0)
    blueprint = make_blueprint(config, optim, 100, build_mesh(MeshConfig(), jax.devices()[:1]))
    state = init_state(blueprint, 0)
    kernel = state["params"]["stack"]["blocks"]["mlp"]["router"]["kernel"]
    state["params"]["stack"]["blocks"]["mlp"]["router"]["kernel"] = kernel * 20
    objective = build_objective(ObjectiveConfig())
    step = jax.jit(make_train_step(blueprint, objective, accumulate=accumulate, seed=0))
    tokens = jax.random.randint(jax.random.key(3), (8, 33), 0, 16)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones((8, 32))}
    history = []
    with jax.set_mesh(blueprint.mesh):
        for _ in range(40 if accumulate == 1 else 1):
            state, metrics = step(state, batch)
            history.append({name: float(value) for name, value in metrics.items()})
    return history, config


def test_the_balance_loss_evens_out_the_load() -> None:
    without, even = train(0.0)[0], train(0.1)[0]
    assert without[0]["router_max_load"] == even[0]["router_max_load"] > 2.5
    assert even[-1]["router_max_load"] < 1.6
    assert without[-1]["router_max_load"] > even[-1]["router_max_load"] + 0.5
    assert even[-1]["router_balance"] < 1.1 < even[0]["router_balance"]
    np.testing.assert_allclose(even[0]["loss"], even[0]["nll"] + 0.1 * even[0]["router_balance"], rtol=1e-5)


def test_micro_batches_have_their_own_losses() -> None:
    """The figure of a step is the mean over its micro-batches, and so is what the loss gains."""
    ((metrics,), _), (whole, _) = train(0.1, accumulate=4), train(0.1)
    np.testing.assert_allclose(metrics["loss"], metrics["nll"] + 0.1 * metrics["router_balance"], rtol=1e-5)
    np.testing.assert_allclose(metrics["nll"], whole[0]["nll"], rtol=1e-5)
    assert abs(metrics["router_balance"] - whole[0]["router_balance"]) > 1e-4
    np.testing.assert_allclose(metrics["router_z"], whole[0]["router_z"], rtol=1e-5)  # a plain mean is the same


# parameters and mistakes


def test_experts_are_a_batch_dim_to_the_optimiser() -> None:
    state = nnx.split(nnx.eval_shape(lambda: MoE(tiny_config(num_experts=4), residual_std=0.1, rngs=nnx.Rngs(0))))[1]
    specs = param_specs(state)
    assert (specs["up"].stacked, specs["up"].num_in) == (1, 1)
    assert specs["router"]["kernel"].stacked == 0


def test_shared_experts_are_one_wide_mlp() -> None:
    _, params = make(num_experts=4, mlp_dim=24, shared_experts=2)
    assert params["shared"]["up"]["kernel"].shape == (64, 48)
    assert params["up"].shape == (4, 64, 24)


def test_more_experts_a_token_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"experts_per_token=5 of model\.num_experts=4"):
        tiny_config(num_experts=4, experts_per_token=5)


@pytest.mark.parametrize("name", ["shared_experts", "capacity_factor", "balance_loss", "router_z_loss"])
def test_keys_of_a_mixture_without_one(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{name}=1 with model\.num_experts=0.*model\.{name}=0"):
        tiny_config(**{name: 1})


def test_losses_without_sums_are_refused() -> None:
    """A block of one's own that does not hand its inputs on."""
    plain = tiny_model()
    plain.config = tiny_config(num_experts=4, balance_loss=0.1)
    batch = {"inputs": jnp.ones((1, 8), jnp.int32), "targets": jnp.ones((1, 8), jnp.int32), "weights": jnp.ones((1, 8))}
    with pytest.raises(ConfigError, match=r"balance_loss=0\.1.*no layer hands out"):
        build_objective(ObjectiveConfig())(plain, batch, None)


def test_two_towers_have_one_weight() -> None:
    tower: dict[str, Any] = {"num_experts": 2, "bias": False}
    with pytest.raises(ConfigError, match=r"text\.balance_loss=0\.1.*vision\.balance_loss=0"):
        CLIPConfig(text=GPTConfig(**tower, balance_loss=0.1), vision=ViTConfig(**tower, num_classes=0))
