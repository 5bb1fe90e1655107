"""Adapters: nothing at first, W + scale A B once folded, in stacks and out of them, in every kind of model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.families import KINDS, batch_of

from helpers import MESHES, params_of, rotated, tiny_config
from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.lora import LoraConfig
from lmkit.config.sections.objective import ObjectiveConfig
from lmkit.config.sections.optim import ParamKind
from lmkit.models import build_model
from lmkit.nn.linear import Linear
from lmkit.nn.lora import add_lora, is_adapter, merge_lora
from lmkit.nn.param import param_specs
from lmkit.nn.tree import flat, nested
from lmkit.objectives import build_objective
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of


def adapted(config, lora: LoraConfig, std: float = 0.5, seed: int = 1):
    """(graph and parameters without, graph and parameters with adapters whose B is no longer zero)."""
    plain = params_of(build_model(config, nnx.Rngs(0)))
    model = build_model(config, nnx.Rngs(0))
    add_lora(model, lora, nnx.Rngs(seed))
    graph, params = params_of(model)
    rng = np.random.default_rng(seed)
    filled = {
        path: jnp.asarray(std * rng.normal(size=leaf.shape), jnp.float32) if path.endswith("lora_b.kernel") else leaf
        for path, leaf in flat(params).items()
    }
    return plain, graph, params, nested(filled)


@pytest.mark.parametrize("name", rotated(KINDS, "gpt2", "moe", "transformer", "clip"))
def test_merged_equals_unmerged(name: str) -> None:
    """Loss of every kind of model with an adapter on every linear layer; with B = 0 it is the model's without."""
    kind, lora = KINDS[name], LoraConfig(rank=3, alpha=5.0, targets=["*"])
    (plain_graph, plain), graph, params, filled = adapted(kind.config, lora)
    objective = build_objective(ObjectiveConfig(kind=kind.objective, chunk_tokens=64))

    def loss_of(graph):
        return jax.jit(
            lambda params: objective(nnx.merge(graph, nnx.State(params)), batch_of(kind.config), None)[0].loss
        )

    plainly, adapted_loss = loss_of(plain_graph), loss_of(graph)
    base = float(plainly(plain))
    assert float(adapted_loss(params)) == pytest.approx(base, rel=1e-6), "B starts at zero"
    merged = merge_lora(filled, lora.scale)
    assert jax.tree.structure(merged) == jax.tree.structure(plain)
    changed = float(adapted_loss(filled))
    assert abs(changed / base - 1) > 4e-4, "the adapters do something"
    # float32: x (W + s A B) and x W + s (x A) B round in another order
    assert float(plainly(merged)) == pytest.approx(changed, rel=2e-5)


def test_the_arithmetic_of_one_layer() -> None:
    """y = x W + b + alpha / rank x A B, by hand, for two input dims and two output dims."""
    linear = Linear({"embed": 3, "head": 2}, {"mlp": 4, "vocab": 5}, std=0, bias=True, rngs=nnx.Rngs(0))
    parent = nnx.Dict(part=linear)
    add_lora(parent, LoraConfig(rank=2, alpha=6.0, targets=["part"]), nnx.Rngs(1))
    assert linear.lora_a is not None
    assert linear.lora_b is not None
    linear.lora_b.kernel[...] = jax.random.normal(jax.random.key(2), (2, 4, 5))
    x = jax.random.normal(jax.random.key(3), (7, 3, 2))
    by_hand = np.einsum("bij,ijkl->bkl", x, linear.kernel[...]) + 3.0 * np.einsum(
        "bij,ijr,rkl->bkl", x, linear.lora_a.kernel[...], linear.lora_b.kernel[...]
    )
    np.testing.assert_allclose(linear(x, ("batch", "mlp", "vocab")), by_hand, rtol=1e-5, atol=1e-5)


def test_what_the_rest_is_told_of_them() -> None:
    """Dims, kinds and contracted dims: what sharding, decay and Muon need; the layers' draws differ."""
    config = tiny_config()
    model = build_model(config, nnx.Rngs(0))
    add_lora(model, LoraConfig(rank=3, targets=["*.attention.out"]), nnx.Rngs(0))
    specs = flat(param_specs(nnx.split(model)[1]))
    a, b = (specs[f"stack.blocks.attention.out.lora_{one}.kernel"] for one in "ab")
    assert (a.shape, a.dims, a.num_in) == ((2, 4, 16, 3), ("layers", "heads", "head", "lora"), 2)
    assert (b.shape, b.dims, b.num_in) == ((2, 3, 64), ("layers", "lora", "embed"), 1)
    assert a.kind is b.kind is ParamKind.matrix
    assert sum(is_adapter(path) for path in specs) == 2
    values = flat(params_of(model)[1])["stack.blocks.attention.out.lora_a.kernel"]
    assert not np.allclose(values[0], values[1])
    assert float(jnp.std(values)) == pytest.approx(64**-0.5, rel=0.2)


@pytest.mark.parametrize(("name", "mesh_name"), rotated(
    ((name, mesh_name) for name in ("gpt", "moe", "bert") for mesh_name in ("fsdp8", "data2_fsdp2_tensor2")),
    ("gpt", "data2_fsdp2_tensor2"), ("moe", "fsdp8"),
))  # fmt: skip
def test_sharded_equals_unsharded(name: str, mesh_name: str) -> None:
    """Loss and every adapter's gradient on eight devices, and folding there."""
    kind, lora = KINDS[name], LoraConfig(rank=2, targets=["*"])
    _, graph, _, params = adapted(kind.config, lora, std=0.05)  # larger ones saturate a softmax or flip a router
    objective = build_objective(ObjectiveConfig(kind=kind.objective, chunk_tokens=64))

    def loss(params, batch):
        return objective(nnx.merge(graph, nnx.State(params)), batch, None)[0].loss

    step = jax.jit(jax.value_and_grad(loss))
    expected = step(params, batch_of(kind.config))
    mesh = build_mesh(compose(["run.name=x", "model.num_heads=4", *MESHES[mesh_name]]).mesh)
    model = nnx.merge(graph, nnx.State(params))
    specs = param_specs(nnx.split(model)[1])
    placed = jax.tree.map(lambda v, s: jax.device_put(v, sharding_of(s.dims, mesh, s.shape)), params, specs)
    rows = {
        key: jax.device_put(value, sharding_of(("batch", "seq")[: value.ndim], mesh))
        for key, value in batch_of(kind.config).items()
    }
    with jax.set_mesh(mesh):
        got = step(placed, rows)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1]))
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        # float32: sums in another order
        np.testing.assert_allclose(a, b, rtol=5e-4, atol=2e-6 * scale, err_msg=jax.tree_util.keystr(path))
    one, many = flat(merge_lora(params, lora.scale)), flat(merge_lora(placed, lora.scale))
    for path, leaf in many.items():
        np.testing.assert_allclose(leaf, one[path], rtol=1e-6, atol=1e-7)
        assert leaf.sharding == flat(placed)[path].sharding


def test_a_target_that_is_no_linear_layer_is_refused() -> None:
    model = build_model(tiny_config(), nnx.Rngs(0))
    with pytest.raises(ConfigError, match=r"lora.targets: '\*.attention.query' matches nothing; there are .*attention"):
        add_lora(model, LoraConfig(rank=2, targets=["*.attention.q", "*.attention.query"]), nnx.Rngs(0))
    with pytest.raises(ConfigError, match="lora.rank=8"):
        LoraConfig(train=["head"])
    with pytest.raises(ConfigError, match="lora.targets"):
        LoraConfig(rank=1, targets=[])
