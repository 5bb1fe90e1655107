"""The step: equal on every mesh, accumulated or not, compiled once, born sharded."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import MESHES, leaves_equal, random_batch, tiny_experiment, train_steps
from lmkit.compiler.collectives import collectives
from lmkit.core.aot import compile_step
from lmkit.core.setup import compile_programs, program_bytes
from lmkit.core.state import Blueprint, State, evaluation_params, init_state, make_blueprint, make_init, root_key
from lmkit.core.step import apply_gradients, make_eval_step, make_gradients, make_train_step, split_batch
from lmkit.cost.collectives import traffic_rows
from lmkit.cost.estimate import estimate
from lmkit.cost.traffic import least_traffic
from lmkit.nn.lora import is_adapter
from lmkit.nn.tree import flat, nested
from lmkit.objectives.build import build_objective
from lmkit.objectives.sums import Sums
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of


@pytest.fixture(scope="module")
def one_device() -> list[float]:
    return train_steps(tiny_experiment(), 10, num_devices=1)[0]


@pytest.mark.parametrize("mesh_name", MESHES)
def test_gpt_tiny_has_the_same_losses_on_eight_devices(mesh_name: str, one_device: list[float]) -> None:
    """Ten steps in float32; later, rounding in another order grows through the optimiser."""
    losses, _, _ = train_steps(tiny_experiment(*MESHES[mesh_name]), 10)
    np.testing.assert_allclose(losses, one_device, rtol=1e-5)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("mesh_name", [None, "data2_fsdp2_tensor2"])
def test_accumulated_equals_full_batch(mesh_name: str | None, one_device: list[float]) -> None:
    """Micro-batches have uneven weights, so averaging their means would be wrong."""
    mesh = MESHES[mesh_name] if mesh_name else ["mesh.data=1"]
    losses, _, _ = train_steps(tiny_experiment("train.accumulate_steps=2", *mesh), 10, 8 if mesh_name else 1)
    np.testing.assert_allclose(losses, one_device, rtol=1e-5)


@pytest.mark.parametrize("mesh", [
    ["mesh.data=2", "mesh.fsdp=2"], pytest.param(["mesh.data=4"], marks=pytest.mark.slow),
])  # fmt: skip
def test_accumulated_rows_are_the_batchs_on_each_device_of_data(mesh: list[str]) -> None:
    """Dropout of a row, and a router's load, hang on the rows of other devices; gradients alone are summed late."""
    words = ["model.dropout=0.2", "model.num_experts=4", "model.balance_loss=0.5", "train.accumulate_steps=2"]
    words += ["model.num_layers=1", "model.embed_dim=32", "model.num_heads=2"]
    one, _, _ = train_steps(tiny_experiment(*words), 3, num_devices=1)
    many, _, _ = train_steps(tiny_experiment(*words, *mesh), 3, num_devices=4)
    np.testing.assert_allclose(one, many, rtol=1e-5)


@pytest.mark.parametrize("axis", ["fsdp", pytest.param("tensor", marks=pytest.mark.slow)])
def test_gradients_are_reduced_over_data_once(axis: str) -> None:
    """However many micro-batches; and nothing more is sent over the other axes where each device of data goes alone."""
    words = ["model.num_layers=1", "model.embed_dim=32", "model.num_heads=2", "data.seq_len=16", "mesh.data=2"]
    words += [f"mesh.{axis}=2", "train.batch_size=16", "train.accumulate_steps=4"]
    experiment = tiny_experiment(*words)
    blueprint, compiled = compile_step(experiment, jax.devices()[:4])
    found = collectives(compiled.as_text(), blueprint.mesh.shape)
    rows = traffic_rows(found, least_traffic(experiment, blueprint))
    sent, asked = rows[("data",), "all-reduce"]
    assert sent.sent_bytes == pytest.approx(asked, rel=0.02)
    assert [axes for axes, _ in rows if "data" in axes] == [("data",)]
    gathers, asked = rows[(axis,), "all-gather"]
    assert gathers.sent_bytes < 1.05 * asked


def test_dropout_is_the_same_on_every_mesh() -> None:
    one, _, _ = train_steps(tiny_experiment("model.dropout=0.2"), 3, num_devices=1)
    many, _, _ = train_steps(tiny_experiment("model.dropout=0.2", *MESHES["data2_fsdp2_tensor2"]), 3)
    np.testing.assert_allclose(one, many, rtol=1e-5)
    none, _, _ = train_steps(tiny_experiment(), 3, num_devices=1)
    assert not np.allclose(one, none, rtol=1e-3)


def test_reruns_are_bitwise_equal() -> None:
    runs = [train_steps(tiny_experiment(*MESHES["data2_fsdp2_tensor2"]), 3) for _ in range(2)]
    assert runs[0][0] == runs[1][0]
    assert leaves_equal(runs[0][1], runs[1][1])


def test_state_is_born_sharded_and_equal_to_the_unsharded() -> None:
    states = {}
    for name, overrides, devices in (("one", ["mesh.data=1"], 1), ("eight", MESHES["fsdp8"], 8)):
        experiment = tiny_experiment(*overrides)
        blueprint = make_blueprint(
            experiment.model, experiment.optim, 10, build_mesh(experiment.mesh, jax.devices()[:devices])
        )
        states[name] = init_state(blueprint, 0)
        if name == "eight":
            whole = sum(leaf.nbytes for leaf in jax.tree.leaves(states[name]))
            assert blueprint.state_bytes_per_device < whole / 6
            local = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(states[name]))
            assert local == blueprint.state_bytes_per_device
    assert leaves_equal(states["one"], states["eight"])


def test_split_batch_keeps_every_row_once() -> None:
    batch = {"inputs": jnp.arange(24).reshape(12, 2)}
    parts = split_batch(batch, 3)["inputs"]
    assert parts.shape == (3, 4, 2)
    assert sorted(parts.reshape(-1).tolist()) == list(range(24))


def test_the_compiled_step_is_the_jitted_one_and_donates() -> None:
    experiment = tiny_experiment("run.compile_cache=")
    mesh = build_mesh(experiment.mesh, jax.devices()[:1])
    blueprint = make_blueprint(experiment.model, experiment.optim, experiment.train.steps, mesh)
    batch = jax.tree.map(lambda x: jax.device_put(x, blueprint.shardings["step"]), random_batch(0))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)
    programs = compile_programs(experiment, blueprint, shapes)
    state = init_state(blueprint, 0)
    assert programs.memory_bytes > blueprint.state_bytes_per_device
    with jax.set_mesh(mesh):
        new, metrics = programs.train(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state)), "the old state's memory is reused"
    losses, _, _ = train_steps(experiment, 1, num_devices=1)
    assert float(metrics["loss"]) == losses[0]
    assert int(new["step"]) == 1


def test_bfloat16_keeps_float32_parameters_and_learns() -> None:
    losses, state, _ = train_steps(tiny_experiment("model.dtype=bfloat16", *MESHES["data2_fsdp2_tensor2"]), 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {jnp.dtype("float32")}
    assert losses[-1] < losses[0] - 0.3


def smallest(*overrides: str) -> tuple[Blueprint, State]:
    """The blueprint of a tiny model on one device, and a state of normal numbers; nothing of it is compiled."""
    sizes = ["model.num_layers=1", "model.num_heads=1", "model.embed_dim=8", "model.mlp_dim=8", "model.vocab_size=8"]
    experiment = tiny_experiment(*sizes, "optim.warmup_steps=0", "optim.schedule=constant", *overrides)
    mesh = build_mesh(experiment.mesh, jax.devices()[:1])
    blueprint = make_blueprint(experiment.model, experiment.optim, 100, mesh)
    rng = np.random.default_rng(0)

    def fill(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        random = path[0].key in ("params", "frozen", "ema")
        value = rng.standard_normal(shape.shape) if random else np.zeros(shape.shape)
        return jax.device_put(value.astype(shape.dtype), shape.sharding)

    return blueprint, jax.tree.map_with_path(fill, blueprint.shapes)


def table_sum(model: Any, batch: dict[str, Any], key: jax.Array | None) -> tuple[Sums, Any]:
    """The weighted sum of rows of the embedding, times a draw of the key where there is one.

    So the gradient of row r is the weight of token r, times the draw of its micro-batch.
    """
    draw = 1.0 if key is None else jax.random.uniform(key)
    table = model.embed.table[...]
    loss = draw * jnp.sum(batch["weights"] * table[batch["inputs"], 0])
    return Sums(loss, jnp.sum(batch["weights"]), loss, jnp.zeros(())), table


FOUR_ROWS = {"inputs": np.arange(4)[:, None], "weights": np.array([[1], [3], [0], [4]], np.float32)}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_gradients_are_those_of_the_mean_over_the_weights(accumulate: int) -> None:
    """Adam hides a constant factor of the gradients from the losses, so they are compared themselves."""
    blueprint, state = smallest()
    gradients = jax.jit(make_gradients(blueprint, table_sum, accumulate=accumulate, seed=0))
    grads, sums, weight = gradients(state, FOUR_ROWS)
    assert float(weight) == float(sums.weight) == 8.0
    np.testing.assert_array_equal(grads["embed"]["table"][:, 0], np.array([1, 3, 0, 4, 0, 0, 0, 0]) / 8)


def test_dropout_differs_by_step_and_micro_batch() -> None:
    blueprint, state = smallest("model.dropout=0.1")
    batch = FOUR_ROWS | {"weights": np.ones((4, 1), np.float32)}

    def draws(accumulate: int, steps: tuple[int, ...], seed: int = 0) -> list[list[float]]:
        gradients = jax.jit(make_gradients(blueprint, table_sum, accumulate=accumulate, seed=seed))
        grads = [gradients(state | {"step": jnp.int32(step)}, batch)[0] for step in steps]
        return [np.asarray(one["embed"]["table"])[:4, 0].tolist() for one in grads]

    first, second, again = draws(4, (0, 1, 0))
    assert len({*first, *second}) == 8
    assert again == first
    assert len(set(draws(1, (0,))[0])) == 1, "one batch has one key"
    assert set(draws(4, (0,), seed=1)[0]).isdisjoint(first)


def test_keys_follow_the_seed_and_the_use() -> None:
    keys = [root_key(seed, use) for seed in (0, 1) for use in ("init", "dropout")]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4
    to_key: Any = SimpleNamespace(
        jit=lambda init, **_: lambda key, known: key, shardings=None
    )  # init_state without the init
    assert [init_state(to_key, seed) for seed in (0, 1)] == [root_key(seed, "init") for seed in (0, 1)]


def test_the_average_follows_its_recurrence() -> None:
    """ema <- ema + (1 - decay) (params - ema), with the parameters after each update."""
    blueprint, state = smallest("optim.ema=0.75", "optim=sgd", "optim.learning_rate=0.5", "optim.clip_norm=0")
    none = Sums(*[jnp.zeros(())] * 4)
    step = jax.jit(lambda state, grads: apply_gradients(blueprint, state, grads, none, jnp.ones(()))[0])
    expected = np.asarray(state["ema"]["embed"]["table"], np.float64)
    for _ in range(3):
        state = step(state, jax.tree.map(jnp.copy, state["params"]))
        expected += 0.25 * (np.asarray(state["params"]["embed"]["table"], np.float64) - expected)
        # float32 rounding of numbers of size 3
        np.testing.assert_allclose(state["ema"]["embed"]["table"], expected, atol=2e-6)


def test_evaluation_uses_the_average_and_no_dropout() -> None:
    blueprint, state = smallest("optim.ema=0.9", "model.dropout=0.1", "optim.freeze=[norm]")
    whole = evaluation_params(blueprint, state)
    assert leaves_equal(whole["embed"], state["ema"]["embed"])
    assert leaves_equal(whole["norm"], state["frozen"]["norm"])
    assert not leaves_equal(state["ema"]["embed"], state["params"]["embed"])
    sums, table = jax.jit(make_eval_step(blueprint, table_sum))(state, FOUR_ROWS)
    np.testing.assert_array_equal(table, state["ema"]["embed"]["table"])
    expected = np.sum(FOUR_ROWS["weights"] * np.asarray(table)[:4, :1])
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-5)  # float32: a sum of three terms


def test_metrics_are_means_and_the_norm_is_that_before_clipping() -> None:
    blueprint, state = smallest("optim=sgd", "optim.clip_norm=1", "optim.learning_rate=0.5", "optim.schedule=linear",
                                "optim.momentum=0", "optim.weight_decay=0")  # fmt: skip
    grads = jax.tree.map(np.zeros_like, state["params"])
    grads["embed"]["table"][0, :2] = 6.0, 8.0
    sums, state = Sums(*map(jnp.float32, (12.0, 4.0, 8.0, 3.0))), state | {"step": jnp.int32(25)}
    new, metrics = jax.jit(lambda s, g: apply_gradients(blueprint, s, g, sums, sums.weight))(state, grads)
    rates = [float(jax.jit(blueprint.optim.learning_rate)(number)) for number in (25, 26)]
    assert rates[0] > rates[1]
    got = {name: float(value) for name, value in metrics.items()}
    means = {"loss": 3.0, "nll": 2.0, "accuracy": 0.75, "weight": 4.0}
    assert got == pytest.approx(means | {"grad_norm": 10.0, "learning_rate": rates[0]}, rel=1e-6)
    assert int(new["step"]) == 26
    moved = np.asarray(new["params"]["embed"]["table"]) - np.asarray(state["params"]["embed"]["table"])
    # clipped to 1, times the rate of the optimiser's own count, which is 0; float32 rounding of numbers of size 3
    np.testing.assert_allclose(np.linalg.norm(moved), 0.5, rtol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 1e-3, 1e-6])
def test_a_small_total_weight_is_divided_by_as_it_is(weight: float) -> None:
    blueprint, state = smallest()
    gradients = jax.jit(make_gradients(blueprint, table_sum, accumulate=1, seed=0))
    ones = {"inputs": FOUR_ROWS["inputs"], "weights": np.full((4, 1), 0.25, np.float32)}
    mean, _, _ = gradients(state, ones)
    got, _, total = gradients(state, ones | {"weights": weight * ones["weights"]})
    assert float(total) == pytest.approx(weight)
    np.testing.assert_allclose(got["embed"]["table"], mean["embed"]["table"], rtol=1e-5)


def test_a_batch_that_weighs_nothing_moves_nothing() -> None:
    blueprint, state = smallest()
    gradients = jax.jit(make_gradients(blueprint, table_sum, accumulate=1, seed=0))
    got, _, _ = gradients(state, FOUR_ROWS | {"weights": np.zeros((4, 1), np.float32)})
    assert not np.asarray(got["embed"]["table"]).any()


LORA = ["lora.rank=2", "lora.targets=['*']", "init_from=there", "model.dtype=bfloat16"]


def test_a_base_rests_in_the_compute_dtype_and_changes_no_number() -> None:
    """Two steps equal those with the base in float32, which is rounded at each use, bit for bit."""
    experiment = tiny_experiment(*LORA, "model.num_layers=1", "mesh.data=1", "mesh.fsdp=2")
    mesh = build_mesh(experiment.mesh, jax.devices()[:2])
    blueprint = make_blueprint(experiment.model, experiment.optim, 10, mesh, experiment.lora)
    size = {dtype: sum(leaf.size for leaf in jax.tree.leaves(blueprint.shapes["frozen"]) if leaf.dtype == dtype)
            for dtype in (jnp.bfloat16, jnp.float32)}  # fmt: skip
    assert size[jnp.bfloat16] > 20 * size[jnp.float32] > 0
    at_rest = init_state(blueprint, 0)
    exact = at_rest | {"frozen": jax.tree.map(lambda leaf: leaf.astype(jnp.float32), at_rest["frozen"])}
    step = make_train_step(blueprint, build_objective(experiment.objective), accumulate=1, seed=0)
    batch = jax.device_put(random_batch(0), sharding_of(("batch", "seq"), mesh))
    with jax.set_mesh(mesh):
        step = blueprint.jit(step)
        states = [step(step(state, batch)[0], batch)[0] for state in (at_rest, exact)]
    assert leaves_equal(states[0]["params"], states[1]["params"])
    assert not leaves_equal(states[0]["params"], at_rest["params"])


@pytest.mark.parametrize("more", [[], LORA], ids=["all of it", "adapters"])
def test_nothing_is_there_twice_at_the_start(more: list[str]) -> None:
    """The program that takes loaded parameters holds the state and no more, as the plan says."""
    experiment = tiny_experiment("model.embed_dim=128", "hardware=h100_1", "mesh.data=1", *more)
    mesh = build_mesh(experiment.mesh, jax.devices()[:1])
    blueprint = make_blueprint(experiment.model, experiment.optim, 10, mesh, experiment.lora)
    known = nested({path: one for path, one in flat(blueprint.param_shapes).items() if not is_adapter(path)})
    program = make_init(blueprint).lower(jax.eval_shape(lambda: root_key(0, "init")), known).compile()
    held = program_bytes(program.memory_analysis(), "cpu")
    assert held == pytest.approx(blueprint.state_bytes_per_device, rel=0.02)
    if more:
        assert held == pytest.approx(estimate(experiment).memory.start, rel=0.02)
