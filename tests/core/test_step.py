"""The step: equal on every mesh, accumulated or not, compiled once, born sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import MESHES, leaves_equal, random_batch, tiny_experiment, train_steps
from lmkit.core.setup import compile_programs
from lmkit.core.state import init_state, make_blueprint
from lmkit.core.step import split_batch
from lmkit.parallel.mesh import build_mesh


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
