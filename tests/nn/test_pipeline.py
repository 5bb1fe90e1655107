"""The pipeline gives what its layers give one after the other, and idles no longer than it must."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from models.families import KINDS, batch_of

from helpers import params_of, tiny_model
from lmkit.config.arithmetic.pipeline import Pipe, choose_microbatches, fits
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.objective import ObjectiveConfig
from lmkit.models import build_model
from lmkit.nn.attention import LayerInputs
from lmkit.nn.dropout import dropout
from lmkit.nn.param import param_specs
from lmkit.nn.pipeline import pipelined
from lmkit.objectives import build_objective
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of

T, D, L = 3, 4, 12
# stages, data, micro-batches asked for, rounds, those that run
CASES = [(2, 1, 2, 1, 2), (2, 2, 8, 1, 8), (4, 2, 6, 1, 6), (4, 1, 4, 3, 4), (2, 2, 6, 3, 6), (4, 1, 8, 3, 8),
         (2, 1, 5, 2, 4), (4, 1, 1, 1, 1)]  # fmt: skip


def make_mesh(**sizes: int) -> Mesh:
    return build_mesh(MeshConfig(**({"data": 1} | sizes)), jax.devices()[: math.prod(sizes.values())])


def toy(rows: int) -> tuple[Any, ...]:
    """(weights [L, D, D], flags [L], numbers [L]), the stream, and inputs of every kind."""
    rng = np.random.default_rng(0)
    layers = (rng.normal(size=(L, D, D)).astype(np.float32), np.arange(L) % 3 == 0, np.arange(L, dtype=np.int32))
    x = rng.normal(size=(rows, T, D)).astype(np.float32)
    inputs = LayerInputs(
        segment_ids_BT=rng.integers(0, 3, (rows, T), dtype=np.int32),
        rope=(rng.normal(size=(1, T, D)).astype(np.float32), rng.normal(size=(rows, T, D)).astype(np.float32)),
        bias_NTS=rng.normal(size=(2, T, D)).astype(np.float32),
        memory_BSD=rng.normal(size=(rows, 2, D)).astype(np.float32),
        rows_B=np.arange(rows, dtype=np.int32),
    )  # fmt: skip
    return layers, x, inputs


def toy_run(layers: Any, inputs: LayerInputs, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
    """A layer that depends on all that it is told: a mistake in any of it shows."""

    def layer(x, xs):
        weights, flag, number = xs
        y = jnp.tanh(x @ weights + jnp.where(flag, 0.5, -0.5) + 0.1 * number)
        y += 0.1 * inputs.segment_ids_BT[..., None] + inputs.rope[0] + inputs.rope[1] + inputs.bias_NTS[0]
        y += jnp.mean(inputs.memory_BSD, axis=1, keepdims=True)
        y = dropout(y, 0.3, jax.random.fold_in(key, number), ("batch", None, "width"), inputs.rows_B)
        return 0.5 * x + y, {"square": jnp.sum(jnp.square(y), axis=(0, 1)), "rows": jnp.float32(x.shape[0])}

    return lax.scan(layer, x, layers)


def loss(layers: Any, x: jax.Array, inputs: LayerInputs, run: Any) -> tuple[jax.Array, Any]:
    y, kept = run(layers, x, inputs)
    return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.arange(1.0, L + 1)[:, None] * jnp.sqrt(kept["square"])), (y, kept)


def differentiable(layers: Any, x: Any, inputs: LayerInputs) -> tuple[Any, ...]:
    return layers[0], x, inputs.rope, inputs.bias_NTS, inputs.memory_BSD


def with_values(layers: Any, inputs: LayerInputs, values: tuple[Any, ...]) -> tuple[Any, ...]:
    weights, x, rope, bias, memory = values
    return (weights, *layers[1:]), x, inputs._replace(rope=rope, bias_NTS=bias, memory_BSD=memory)


@pytest.mark.parametrize(("stages", "data", "asked", "rounds", "runs"), CASES)
def test_equals_the_layers_in_turn(stages: int, data: int, asked: int, rounds: int, runs: int) -> None:
    """Values, the gradient of everything, and the layers' sums, with dropout; the loop turns as often as it must."""
    rows = 24 * data if asked in (6, 8) else 8 * data
    layers, x, inputs = toy(rows)
    key = jax.random.key(1)
    mesh = make_mesh(stage=stages, data=data)
    assert choose_microbatches(asked, rows // data, stages) == runs

    def value(values, run):
        return loss(*with_values(layers, inputs, values), run)

    def plain(layers, x, inputs):
        return toy_run(layers, inputs, x, key)

    def piped(layers, x, inputs):
        return pipelined(toy_run, layers, x, inputs, key, microbatches=asked, rounds=rounds)

    gradient = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=1)
    values = differentiable(layers, x, inputs)
    expected = gradient(values, plain)
    by_rows, whole = (sharding_of(dims, mesh) for dims in (("batch",), ()))
    inputs = inputs._replace(
        segment_ids_BT=jax.device_put(inputs.segment_ids_BT, by_rows), rows_B=jax.device_put(inputs.rows_B, by_rows)
    )
    layouts = (sharding_of(("layers",), mesh), by_rows, (whole, by_rows), whole, by_rows)
    values = jax.tree.map(jax.device_put, values, layouts)
    with jax.set_mesh(mesh):
        compiled = gradient.lower(values, piped).compile()
        got = compiled(values)
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4, err_msg=jax.tree_util.keystr(path))  # float32 sums
    assert np.all(got[0][1][1]["rows"] == rows)  # an idle tick counts nothing
    turns = {int(n) for n in re.findall(r'"known_trip_count":\{"n":"(\d+)"', compiled.as_text())}
    ticks = Pipe(stages, runs, rounds).ticks
    assert ticks in turns
    assert turns <= {ticks, L // (stages * rounds), 5}  # the layers of a chunk; the rounds of the random numbers


def test_the_formula_of_the_bubble() -> None:
    """Counted: each stage is idle before its first chunk arrives and after its last has gone."""
    for stages, microbatches, rounds in ((4, 16, 1), (4, 8, 3), (2, 2, 1)):
        pipe = Pipe(stages, microbatches, rounds)
        busy = sum(0 <= tick - stage < rounds * microbatches for tick in range(pipe.ticks) for stage in range(stages))
        assert pipe.bubble == pytest.approx(1 - busy / (pipe.ticks * stages))
    assert Pipe(4, 16, 1).bubble == 3 / 19
    assert "3 of 19 ticks, 15.8%" in str(Pipe(4, 16, 1))


def test_how_many_micro_batches() -> None:
    assert choose_microbatches(0, 64, 4) == 16
    assert choose_microbatches(0, 12, 4) == 12
    assert choose_microbatches(7, 12, 4) == 6
    assert choose_microbatches(0, 4, 4) == 4  # the rows of the stages themselves always fit
    assert fits(6, 12, 4)
    assert not fits(6, 8, 4)
    assert not fits(3, 8, 4)
    assert not fits(2, 6, 4)  # the stages have no equal shares


def test_no_gradient_of_a_layer_crosses_the_stages() -> None:
    """All that a stack of matrices sends is the stream: no collective has the shape of its parameters."""
    rows, width = 8, 24
    layers = (np.zeros((4, width, width), np.float32), np.zeros(4, bool), np.arange(4, dtype=np.int32))
    mesh = make_mesh(stage=4)

    def run(layers, inputs, x, key):
        return lax.scan(lambda x, xs: (jnp.tanh(x @ xs[0]), {}), x, layers)

    def value(weights, x):
        y, _ = pipelined(run, (weights, *layers[1:]), x, LayerInputs(), None, microbatches=4, rounds=1)
        return jnp.sum(y)

    weights = jax.device_put(layers[0], sharding_of(("layers",), mesh))
    x = jax.device_put(np.zeros((rows, 2, width), np.float32), sharding_of(("batch",), mesh))
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(value), out_shardings=weights.sharding).lower(weights, x).compile()
    moved = re.findall(r"= \(?f32\[([\d,]+)\][^=]* (all-\w+|reduce-scatter|collective-permute)\(", compiled.as_text())
    assert {kind for _, kind in moved} >= {"collective-permute"}
    assert not [shape for shape, _ in moved if shape.endswith(f"{width},{width}")], moved


MODELS = {
    "gpt": {"stage": 2, "fsdp": 2, "tensor": 2},
    "moe": {"stage": 2, "fsdp": 2, "tensor": 2},
    "modernbert": {"stage": 2, "fsdp": 2},
    "t5": {"stage": 2, "data": 2},
    "whisper": {"stage": 2, "tensor": 2},
    "bert": {"stage": 2, "data": 2},
    "vit": {"stage": 2, "tensor": 2},
    "clip": {"stage": 2, "data": 2},
}


@pytest.mark.parametrize(
    "name", [name if name == "moe" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_models_on_stages_equal_those_on_one_device(name: str) -> None:
    """Loss and every gradient; the first block of a ModernBERT, a stack of its own, is on all stages."""
    kind = KINDS[name]
    graph, params = params_of(build_model(kind.config, nnx.Rngs(0)))
    objective = build_objective(ObjectiveConfig(kind=kind.objective, chunk_tokens=64))
    batch, mesh = batch_of(kind.config), make_mesh(**MODELS[name])

    def value(params, batch):
        return objective(nnx.merge(graph, nnx.State(params)), batch, None)[0].loss

    expected = jax.jit(jax.value_and_grad(value))(params, batch)
    specs = param_specs(nnx.split(nnx.eval_shape(lambda: build_model(kind.config, nnx.Rngs(0))))[1])
    layout = jax.tree.map(lambda s: sharding_of(s.dims, mesh, s.shape), specs)
    rows = {
        key: jax.device_put(value, sharding_of(("batch", *[None] * (value.ndim - 1)), mesh))
        for key, value in batch.items()
    }
    with jax.set_mesh(mesh):
        got = jax.jit(jax.value_and_grad(value), out_shardings=(None, layout))(jax.device_put(params, layout), rows)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1]))
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-4, atol=2e-6 * scale, err_msg=jax.tree_util.keystr(path))


def test_a_stack_of_one_layer_is_not_cut() -> None:
    assert {s.dims[0] for s in jax.tree.leaves(param_specs(nnx.split(tiny_model(num_layers=1).stack)[1]))} == {"layer"}
    assert {s.dims[0] for s in jax.tree.leaves(param_specs(nnx.split(tiny_model().stack)[1]))} == {"layers"}


def test_dropout_follows_the_row() -> None:
    """A row has its mask wherever it stands; rows, inputs and keys differ."""
    x, key, dims = jnp.ones((4, 6, 32)), jax.random.key(0), ("batch", "seq", "width")
    whole = dropout(x, 0.5, key, dims)
    np.testing.assert_array_equal(dropout(x[:2], 0.5, key, dims, jnp.array([3, 1])), whole[jnp.array([3, 1])])
    each = np.asarray(whole != 0).reshape(24, 32)
    assert len({mask.tobytes() for mask in each}) == 24


def test_each_device_moves_its_own_rows_and_weights_are_kept_once() -> None:
    """Of 2 stages and 4 shards: no exchange has rows of two shards, and no array has the weights of several ticks."""
    mesh, width, rows, seq, micro = make_mesh(stage=2, fsdp=4), 48, 64, 5, 4
    x = jax.ShapeDtypeStruct((rows, seq, width), jnp.float32, sharding=sharding_of(("batch", None, None), mesh))
    weights = jax.ShapeDtypeStruct((L, width, width), jnp.float32, sharding=sharding_of(("layers", None, None), mesh))
    rest = (np.zeros(L, bool), np.arange(L, dtype=np.int32))

    def run(layers: Any, inputs: LayerInputs, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
        return lax.scan(lambda x, xs: (jax.checkpoint(lambda w, x: x + jnp.tanh(x @ w))(xs[0], x), {}), x, layers)

    def total(weights: jax.Array, x: jax.Array) -> jax.Array:
        y, _ = pipelined(run, (weights, *rest), x, LayerInputs(), None, microbatches=micro, rounds=1)
        return jnp.sum(jnp.sin(y))

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(total, argnums=(0, 1))).lower(weights, x).compile().as_text()

    def shapes(pattern: str) -> list[tuple[int, ...]]:
        return [tuple(int(n) for n in dims.split(",")) for dims in re.findall(pattern, text)]

    exchanged = shapes(r"f32\[([\d,]+)\]\S* all-to-all\(") + shapes(r"\(f32\[([\d,]+)\]\S*, f32.* all-to-all\(")
    assert exchanged
    assert max(math.prod(shape) for shape in exchanged) <= 2 * rows // 8 * seq * width
    # What the backward pass needs of each tick stays where it is: it was gathered over fsdp at the border.
    gathered = shapes(r"f32\[([\d,]+)\]\S* all-gather\(")
    assert not [shape for shape in gathered if shape[-2:] == (seq, width)]
    kept = [shape for shape in shapes(r"f32\[([\d,]+)\]") if shape[-2:] == (width, width)]
    assert max(math.prod(shape) for shape in kept) <= L // 2 * width * width
