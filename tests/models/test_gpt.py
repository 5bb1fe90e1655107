"""GPT: published sizes, causality, packing, sharding, and use without Hydra or a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import MESHES, ROOT, params_of, random_batch, rotated, tiny_config, tiny_model
from lmkit.config.entry import compose
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import Activation, Norm, NormOrder, Position, Remat, RopeScaling
from lmkit.models import GPT
from lmkit.nn.param import param_specs
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of

TOKENS = jnp.asarray(random_batch(0, rows=8, seq=64)["inputs"])
FAMILIES = {
    "gpt2": {
        "position": Position.learned,
        "norm": Norm.layernorm,
        "bias": True,
        "tie_embeddings": True,
        "activation": Activation.gelu_tanh,
    },
    "llama": {"gated": True, "num_kv_heads": 2},
    "qwen3": {"gated": True, "num_kv_heads": 2, "qk_norm": True, "tie_embeddings": True, "head_dim": 32},
    "gemma": {
        "gated": True,
        "num_kv_heads": 2,
        "qk_norm": True,
        "tie_embeddings": True,
        "embed_scale": True,
        "norm_offset": 1.0,
        "norm_order": NormOrder.both,
        "sliding_window": 8,
        "global_every": 2,
        "rope_local_theta": 100.0,
        "attention_softcap": 5.0,
        "logit_softcap": 3.0,
        "activation": Activation.gelu_tanh,
        "attention_scale": 0.2,
    },
    "moe": {"gated": True, "num_experts": 4, "num_kv_heads": 2, "mlp_dim": 96},
    "llama3": {"gated": True, "rope_scaling": RopeScaling.llama3, "rope_factor": 8.0, "rope_original_len": 32},
    "relu2": {"activation": Activation.relu2, "qk_norm": True, "qkv_bias": True, "dropout": 0.1},
}


class Noisy(nnx.Module):
    """An embedding with noise added: the noise enters where tokens do."""

    def __init__(self, embed, noise):
        self.embed, self.table, self.noise = embed, embed.table, nnx.data(noise)

    def __call__(self, ids, dtype, out):
        return self.embed(ids, dtype, out) + self.noise


@pytest.mark.parametrize("name", FAMILIES)
def test_no_position_sees_the_future(name: str) -> None:
    """The gradient of a position's logits with respect to later embeddings is exactly zero."""
    model = tiny_model(**FAMILIES[name])
    graph, params = params_of(model)

    def of_position(noise, place):
        merged = nnx.merge(graph, nnx.State(params))
        merged.embed = Noisy(merged.embed, noise)
        return jnp.sum(jnp.square(merged(TOKENS[:1, :16])[0, place]))

    gradient = jax.grad(of_position)(jnp.zeros((1, 16, 64)), 9)
    seen = jnp.abs(gradient[0]).sum(-1)
    assert (seen[10:] == 0).all()
    assert (seen[8:10] > 0).all()


@pytest.mark.parametrize("name", ["llama", "gemma", "relu2"])
def test_packed_documents_equal_separate_ones(name: str) -> None:
    model = tiny_model(**FAMILIES[name])
    first, second = TOKENS[:1, :20], TOKENS[1:2, :30]
    packed = jnp.concatenate([first, second], axis=1)
    segments = jnp.array([[1] * 20 + [2] * 30])
    positions = jnp.array([[*range(20), *range(30)]])
    logits = model(packed, segments, positions)
    np.testing.assert_allclose(logits[:, :20], model(first), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[:, 20:], model(second), rtol=1e-4, atol=1e-5)
    assert not np.allclose(model(packed)[:, 20:], model(second), atol=1e-3), "without segment ids they mix"


# Every family on the mixed mesh; pure data and fsdp on the two that differ most.
PAIRS = [
    (name, mesh) for name in FAMILIES for mesh in MESHES if mesh == "data2_fsdp2_tensor2" or name in ("gpt2", "gemma")
]


@pytest.mark.parametrize(("name", "mesh_name"), rotated(
    PAIRS, ("gpt2", "data8"), ("gemma", "fsdp8"), ("moe", "data2_fsdp2_tensor2"), ("qwen3", "data2_fsdp2_tensor2")
))  # fmt: skip
def test_sharded_equals_unsharded(name: str, mesh_name: str) -> None:
    """Logits' mean square and every gradient, with dropout on, packed, on eight devices."""
    graph, params = params_of(tiny_model(**FAMILIES[name]))
    specs = param_specs(nnx.split(nnx.eval_shape(lambda: tiny_model(**FAMILIES[name])))[1])
    batch = random_batch(1)

    def loss(params, tokens, segments):
        model = nnx.merge(graph, nnx.State(params))
        return jnp.mean(jnp.square(model(tokens, segments, None, jax.random.key(3))))

    step = jax.jit(jax.value_and_grad(loss))
    expected = step(params, batch["inputs"], batch["segment_ids"])
    mesh = build_mesh(compose(["run.name=x", "model.num_heads=4", *MESHES[mesh_name]]).mesh)
    placed = jax.tree.map(
        lambda value, spec: jax.device_put(value, sharding_of(spec.dims, mesh, spec.shape)), params, specs
    )
    rows = sharding_of(("batch", "seq"), mesh)
    with jax.set_mesh(mesh):
        got = step(placed, jax.device_put(batch["inputs"], rows), jax.device_put(batch["segment_ids"], rows))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for (path, a), b in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        # float32: sums in another order; a gradient that is zero by symmetry (key biases) is only noise
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6 * scale, err_msg=jax.tree_util.keystr(path))


def test_gradients_are_never_reduced_whole() -> None:
    """Under fsdp no collective of the backward pass moves a whole stacked weight's gradient per layer."""
    config = tiny_config(remat=Remat.none)
    graph, _ = params_of(GPT(config, rngs=nnx.Rngs(0)))
    specs = param_specs(nnx.split(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0))))[1])
    mesh = build_mesh(compose(["run.name=x", *MESHES["fsdp8"]]).mesh)
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=sharding_of(s.dims, mesh, s.shape)), specs
    )
    tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32, sharding=sharding_of(("batch", "seq"), mesh))
    loss = lambda p, t: jnp.mean(jnp.square(nnx.merge(graph, nnx.State(p)).hidden(t)))  # noqa: E731
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(shapes, tokens).compile().as_text()
    reduced = re.findall(r"= f32\[([\d,]*)\][^=]* all-reduce\(", text)
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in reduced]
    assert "reduce-scatter" in text or "all-reduce" in text
    assert all(size <= 64 * 64 for size in sizes), f"an all-reduce of {max(sizes)} elements"


def test_strict_dtypes() -> None:
    with jax.numpy_dtype_promotion("strict"):
        assert tiny_model()(TOKENS[:, :8]).dtype == jnp.float32


def test_learned_positions_are_used() -> None:
    model = tiny_model(position=Position.learned)
    same = jnp.full((1, 8), 3)
    assert not np.allclose(model(same)[0, 1], model(same)[0, 5], atol=1e-3)


def test_no_vocabulary_is_an_error() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        GPT(GPTConfig(), rngs=nnx.Rngs(0))


def test_readme_snippet_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (snippet,) = [block for block in blocks if "from lmkit.models import GPT" in block]
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 5
    names: dict = {}
    exec(snippet, names)
    assert names["logits"].shape == (1, 5, 256)
