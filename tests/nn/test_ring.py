"""Attention over a split sequence equals attention over a whole one, with its gradients, and needs less memory."""

import re
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import rotated, tiny_experiment
from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.model import ContextAttention
from lmkit.core.setup import lower_step, setup_mesh
from lmkit.core.state import make_blueprint
from lmkit.data.loader import array_sharding
from lmkit.nn.attend import attend
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of

RING, ALL_TO_ALL = ContextAttention.ring, ContextAttention.all_to_all
Q, K, ROWS = ("batch", "seq", "heads", "head"), ("batch", "seq", "kv_heads", "head"), ("batch", "seq")
# options, packed, bias, length of the keys
CASES = {
    "causal": ({}, True, False, 48),
    "softcap": ({"softcap": 5.0}, False, False, 48),
    "window_within_a_share": ({"window": 9}, True, False, 48),
    "window_over_shares": ({"window": 30}, False, False, 48),
    "odd_share": ({}, True, False, 24),
    "bias": ({}, False, True, 48),
    "two_sided": ({"causal": False}, True, False, 48),
    "two_sided_window": ({"causal": False, "window": 14}, True, False, 48),
    "two_sided_bias": ({"causal": False}, False, True, 48),
    "other_keys": ({"causal": False}, True, False, 24),  # some queries see none of them
}
MESHES = {"context4_tensor2": {"context": 4, "tensor": 2}, "data2_context3": {"data": 2, "context": 3}}


def mesh_of(**sizes: int) -> jax.sharding.Mesh:
    config = MeshConfig(**({"data": 1} | sizes))
    return build_mesh(config, jax.devices()[: int(np.prod(list(sizes.values())))])


def make_inputs(queries: int, keys: int, packed: bool, bias: bool, heads: int = 4, kv_heads: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    own, others = (np.cumsum(rng.random((2, n)) < 3 / n, axis=1).astype(np.int32) for n in (queries, keys))
    return {
        "q": array(2, queries, heads, 8), "k": array(2, keys, kv_heads, 8), "v": array(2, keys, kv_heads, 8),
        "segments": (own, own if queries == keys else others) if packed else None,
        "bias": array(heads, queries, keys) if bias else None, "weight": array(2, queries, heads, 8),
    }  # fmt: skip


def place(inputs: dict[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    dims = {"q": Q, "k": K, "v": K, "bias": ("heads", None, None), "weight": Q}
    return {
        name: None if x is None else tuple(jax.device_put(y, sharding_of(ROWS, mesh)) for y in x)
        if isinstance(x, tuple) else jax.device_put(x, sharding_of(dims[name], mesh))
        for name, x in inputs.items()
    }  # fmt: skip


def values(inputs: dict[str, Any], **options: Any) -> list[np.ndarray]:
    """The result and the gradients of q, k, v and the bias."""

    def weighted(trained: dict, inputs: dict) -> tuple[jax.Array, jax.Array]:
        q, k, v = (trained[name] for name in "qkv")
        out = attend(q, k, v, segments=inputs["segments"], bias_NTS=trained.get("bias"), **options)
        return jnp.sum(out * inputs["weight"]), out

    trained = {name: inputs[name] for name in ("q", "k", "v", "bias") if inputs[name] is not None}
    grads, out = jax.jit(jax.grad(weighted, has_aux=True))(trained, inputs)
    return [np.asarray(x) for x in (out, *grads.values())]


@pytest.mark.parametrize(("case", "mesh"), rotated(
    ((case, mesh) for case in CASES for mesh in MESHES),
    ("causal", "data2_context3"), ("odd_share", "data2_context3"), *((case, "context4_tensor2") for case in CASES),
))  # fmt: skip
def test_equals_one_device(case: str, mesh: str) -> None:
    options, packed, bias, keys = CASES[case]
    inputs = make_inputs(keys if case == "odd_share" else 48, keys, packed, bias)
    where = mesh_of(**MESHES[mesh])
    expected = values(inputs, **options)
    with jax.set_mesh(where):
        got = values(place(inputs, where), context=RING, **options)
    for one, many in zip(expected, got, strict=True):  # float32 sums in another order
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=2e-6 * float(np.max(np.abs(one))))


@pytest.mark.parametrize("case", ["causal", "window_over_shares", "two_sided", "bias"])
@pytest.mark.parametrize("kv_heads", [2, 8])
def test_heads_instead_of_places(case: str, kv_heads: int) -> None:
    """Also where a key head serves the query heads of two devices."""
    options, packed, bias, keys = CASES[case]
    inputs = make_inputs(48, keys, packed, bias, heads=8, kv_heads=kv_heads)
    where = mesh_of(context=4, tensor=2)
    expected = values(inputs, **options)
    with jax.set_mesh(where):
        got = values(place(inputs, where), context=ALL_TO_ALL, **options)
    for one, many in zip(expected, got, strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6 * float(np.max(np.abs(one))))


def compiled(seq: int, devices: int, heads: int = 1, **options: Any) -> Any:
    """The compiled gradient of attention over one long row."""
    where = mesh_of(context=devices)
    one = jax.ShapeDtypeStruct((1, seq, heads, 8), jnp.float32, sharding=sharding_of(Q, where))

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(attend(q, k, v, **options))

    with jax.set_mesh(where):
        return jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(one, one, one).compile()


@pytest.mark.parametrize("context", [RING, ALL_TO_ALL])
def test_memory_of_a_device_falls(context: ContextAttention) -> None:
    peaks = [compiled(131_072, n, heads=4, context=context).memory_analysis().temp_size_in_bytes for n in (1, 2, 4)]
    assert all(more > 1.3 * less for more, less in pairwise(peaks)), peaks


def test_a_window_asks_only_its_neighbours() -> None:
    """Keys go as far as the window reaches: one turn, where all would be seven."""
    count = {
        window: len(re.findall(r" collective-permute(?:-start)?\(", compiled(512, 8, window=window).as_text()))
        for window in (60, 120, 0)
    }
    assert count[60] < count[120], count  # the second turn is a loop of its own
    text = compiled(512, 8, window=60).as_text()
    assert " while(" not in text


def test_what_cannot_be_split_is_refused() -> None:
    def refused(*words: str) -> str:
        with pytest.raises(ConfigError) as error:
            compose(["run.name=x", "mesh.data=1", *words])
        return str(error.value)

    assert "data.seq_len=130" in (said := refused("mesh.context=4", "data.seq_len=130"))
    assert "128 and 132" in said
    assert "an image's positions=197" in refused("mesh.context=4", "model=vit_b16", "objective=classify")
    assert "context_attention=all_to_all" in refused("mesh.context=4", "model.attention=splash")
    said = refused("mesh.context=8", "model=gemma3_1b", "model.context_attention=all_to_all")
    assert "model.num_heads / mesh.tensor=4" in said


@pytest.mark.slow
def test_a_hundred_and_twenty_eight_thousand_tokens() -> None:
    """A gradient over 131,072 places on eight devices, the last of them checked against the formula."""
    seq, where = 131_072, mesh_of(context=8)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, seq, 1, 8)).astype(np.float32) for _ in range(3))
    only = np.zeros_like(q)
    only[0, -1] = 1  # of a sequence that is split no place can be taken by its number
    args = [jax.device_put(x, sharding_of(Q, where)) for x in (q, k, v, only)]
    with jax.set_mesh(where):
        run = jax.jit(jax.value_and_grad(lambda q, k, v, only: jnp.sum(only * attend(q, k, v))))
        last, d_q = run(*args)
    scores = (q[0, -1, 0] @ k[0, :, 0].T).astype(np.float64) / 8**0.5
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    out = weights @ v[0, :, 0]
    np.testing.assert_allclose(float(last), out.sum(), rtol=1e-4)
    by_key = weights * ((v[0, :, 0] - out) @ np.ones(8))
    np.testing.assert_allclose(np.asarray(d_q)[0, -1, 0], by_key @ k[0, :, 0] / 8**0.5, rtol=1e-3, atol=1e-6)


def test_masks_of_long_rows_are_not_held() -> None:
    """A step over layers in a scan, which would make all masks beforehand if they did not come from the queries."""
    long = "mesh.data=1 mesh.context=8 data.seq_len=32768 model.max_seq_len=32768 train.batch_size=1"
    small = "model.num_layers=2 model.num_heads=1 model.embed_dim=8 model.head_dim=8 model.mlp_dim=16"
    experiment = tiny_experiment(*long.split(), *small.split())
    mesh = setup_mesh(experiment)
    blueprint = make_blueprint(experiment.model, experiment.optim, 2, mesh)
    kinds = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32, "segment_ids": jnp.int32}
    batch = {
        name: jax.ShapeDtypeStruct((1, 32768), dtype, sharding=array_sharding(name, (1, 32768), mesh))
        for name, dtype in kinds.items()
    }
    memory = lower_step(experiment, blueprint, batch).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 64 * 2**20  # the masks alone are 4096 x 4096 of each of the ring's turns
