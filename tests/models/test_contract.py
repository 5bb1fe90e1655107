"""What every model must keep: found by itself, no hardware needed.

One train step of each kind lowers on an AbstractMesh; each preset's parameters are split; the look-up of a token never
gathers the table; and the step on a mesh of eight devices equals the step on one.
"""

import importlib
import inspect
import pkgutil
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interop.docs_table import presets
from jax.sharding import AbstractMesh, AxisType
from models.families import KINDS, batch_of

import lmkit.models
from helpers import MESHES, params_of, rotated
from lmkit.config.entry import compose
from lmkit.config.sections.families import MODEL_SCHEMAS, GPTConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.objective import ObjectiveConfig
from lmkit.config.sections.optim import OptimConfig
from lmkit.core.state import init_state, make_blueprint
from lmkit.core.step import make_train_step
from lmkit.models import MODELS, build_model
from lmkit.nn.param import param_specs
from lmkit.objectives import build_objective
from lmkit.parallel.mesh import AXES, build_mesh
from lmkit.parallel.rules import sharding_of, spec_of

MIB = 2**20


def abstract_mesh(**sizes: int) -> AbstractMesh:
    return AbstractMesh(
        tuple(sizes.get(axis, 1) for axis in AXES), AXES, axis_types=(AxisType.Explicit,) * len(AXES)
    )  # fmt: skip


def specs_of(config: ModelConfig) -> dict[str, Any]:
    state = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[1]
    paths = jax.tree.leaves_with_path(param_specs(state))
    return {jax.tree_util.keystr(path, simple=True, separator="."): spec for path, spec in paths}


def _dims(value: np.ndarray) -> tuple:
    return (
        ("batch", "seq")[: min(value.ndim, 2)] + (None,) * (value.ndim - 2)
        if value.ndim < 4
        else ("batch",) + (None,) * 3
    )


def test_every_model_is_found() -> None:
    """Each class in lmkit/models that takes a configuration is registered for it, and each schema has a model."""
    found = set()
    for module in pkgutil.iter_modules(lmkit.models.__path__):
        for name, one in inspect.getmembers(importlib.import_module(f"lmkit.models.{module.name}"), inspect.isclass):
            if issubclass(one, nnx.Module) and one.__module__ == f"lmkit.models.{module.name}":
                schema = inspect.signature(one.__init__).parameters["config"].annotation
                if schema in MODELS and MODELS[schema].__name__ == name:
                    found.add(schema)
                else:  # a part: it takes the configuration of a whole
                    assert one not in MODELS.values()
    assert found == set(MODELS) == set(MODEL_SCHEMAS.values()) == {type(kind.config) for kind in KINDS.values()}


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"stage": 2, "fsdp": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("name", rotated(KINDS, "gpt", "moe", "modernbert", "t5", "vit", "clip"))
def test_one_step_lowers_on_an_abstract_mesh(name: str, sizes: dict[str, int]) -> None:
    """No device of it exists."""
    kind = KINDS[name]
    mesh = abstract_mesh(**sizes)
    blueprint = make_blueprint(kind.config, OptimConfig(), 10, mesh)
    step = make_train_step(blueprint, build_objective(ObjectiveConfig(kind=kind.objective)), accumulate=1, seed=0)
    batch = {
        key: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding_of(_dims(value), mesh))
        for key, value in batch_of(kind.config).items()
    }
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = jax.jit(step).trace(blueprint.shapes, batch).lower(lowering_platforms=("tpu",))
    text = lowered.as_text()
    assert re.search(rf'"fsdp"={sizes["fsdp"]}.*"tensor"=2', text), "the step knows nothing of the mesh"
    assert ("collective_permute" in text) == ("stage" in sizes)


@pytest.mark.parametrize("preset", rotated(
    presets(), "gpt3_175b", "llama3_8b", "mixtral_8x7b", "bert_base", "modernbert_base", "t5_base", "bart_base",
    "whisper_base", "vit_b16", "clip_vit_b32", "gemma3_1b",
))  # fmt: skip
def test_no_parameter_above_a_mebibyte_stays_whole(preset: str) -> None:
    """On fsdp=8 x tensor=2 every layer's parameter of more than 1 MiB is split."""
    for path, spec in specs_of(compose(["run.name=x", f"model={preset}"]).model).items():
        shape = spec.shape[1:] if spec.dims[:1] == ("layers",) else spec.shape
        split = spec_of(spec.dims, {"fsdp": 8, "tensor": 2})
        if 4 * np.prod(shape) > MIB:
            assert any(entry is not None for entry in split), f"{path} {spec.shape} is on every device whole"


@pytest.mark.parametrize("mesh_name", ["fsdp8", "data2_fsdp2_tensor2"])
def test_the_look_up_gathers_no_table(mesh_name: str) -> None:
    """Neither the embedding nor its gradient moves the table: only ids and the rows that were looked up."""
    vocab, width, seq = 4096, 64, 1024  # more rows are looked up than there are: gathering would look cheap
    config = GPTConfig(vocab_size=vocab, num_layers=1, num_heads=4, embed_dim=width)
    model = build_model(config, nnx.Rngs(0))
    mesh = build_mesh(compose(["run.name=x", *MESHES[mesh_name]]).mesh)
    graph = nnx.split(model.embed)[0]
    table = jax.device_put(model.embed.table[...], sharding_of(("vocab", "embed"), mesh))
    ids = jax.device_put(np.zeros((8, seq), np.int32), sharding_of(("batch", "seq"), mesh))

    def loss(table, ids):
        embed = nnx.merge(graph, nnx.State({"table": table}))
        embedded = embed(ids, jnp.dtype(jnp.float32), ("batch", "seq_norm", "width"))
        return jnp.sum(jnp.square(embedded))

    with jax.set_mesh(mesh):
        text = jax.jit(jax.value_and_grad(loss)).lower(table, ids).compile().as_text()
    moved = re.findall(r"= \(?f32\[([\d,]+)\][^=]* (all-gather|all-reduce|all-to-all|collective-permute)\(", text)
    slices = {f"{vocab},{width}", f"{vocab // 2},{width}"}  # the table, or a tensor device's rows of it
    assert not [kind for shape, kind in moved if shape in slices], moved
    assert "all-to-all" in text


@pytest.mark.parametrize(("name", "mesh_name"), rotated(
    ((name, mesh_name) for name in KINDS for mesh_name in ("fsdp8", "data2_fsdp2_tensor2")),
    ("gpt", "data2_fsdp2_tensor2"), ("moe", "data2_fsdp2_tensor2"), ("bert", "fsdp8"), ("t5", "data2_fsdp2_tensor2"),
    ("vit", "fsdp8"), ("clip", "data2_fsdp2_tensor2"),
))  # fmt: skip
def test_sharded_equals_unsharded(name: str, mesh_name: str) -> None:
    """Loss and every gradient on eight devices."""
    kind = KINDS[name]
    graph, params = params_of(build_model(kind.config, nnx.Rngs(0)))
    objective = build_objective(ObjectiveConfig(kind=kind.objective, chunk_tokens=64))
    batch = batch_of(kind.config)

    def loss(params, batch):
        return objective(nnx.merge(graph, nnx.State(params)), batch, None)[0].loss

    step = jax.jit(jax.value_and_grad(loss))
    expected = step(params, batch)
    mesh = build_mesh(compose(["run.name=x", "model.num_heads=4", *MESHES[mesh_name]]).mesh)
    specs = param_specs(nnx.split(nnx.eval_shape(lambda: build_model(kind.config, nnx.Rngs(0))))[1])
    placed = jax.tree.map(lambda v, s: jax.device_put(v, sharding_of(s.dims, mesh, s.shape)), params, specs)
    rows = {key: jax.device_put(value, sharding_of(_dims(value), mesh)) for key, value in batch.items()}
    with jax.set_mesh(mesh):
        got = step(placed, rows)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1]))
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        # float32: sums in another order; a gradient that is zero by symmetry (key biases) is only noise
        np.testing.assert_allclose(a, b, rtol=5e-4, atol=2e-6 * scale, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", [
    name if name in ("gpt", "bert", "transformer", "vit") else pytest.param(name, marks=pytest.mark.slow)
    for name in KINDS
])  # fmt: skip
def test_one_device_is_a_mesh_too(name: str) -> None:
    """Two whole steps, as train takes them on a laptop or a single GPU."""
    kind = KINDS[name]
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    blueprint = make_blueprint(kind.config, OptimConfig(learning_rate=1e-2, warmup_steps=0), 10, mesh)
    objective = build_objective(ObjectiveConfig(kind=kind.objective, chunk_tokens=64))
    step, state = jax.jit(make_train_step(blueprint, objective, accumulate=1, seed=0)), init_state(blueprint, 0)
    losses = []
    with jax.set_mesh(mesh):
        for _ in range(3):
            state, metrics = step(state, batch_of(kind.config))
            losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
