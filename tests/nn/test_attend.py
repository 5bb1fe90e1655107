"""Attention: every kernel that runs here equals the textbook form, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import equations, rotated
from lmkit.config import ConfigError
from lmkit.config.sections.model import Kernel
from lmkit.nn.attend import attend, choose_kernel


def textbook(q, k, v, segments=None, bias=None, *, causal=True, window=0, softcap=0.0, scale=0.0):
    """softmax(q k^T + bias) v with repeated key heads and a full mask."""
    groups, (_, seq, _, size) = q.shape[2] // k.shape[2], q.shape
    k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * (scale or size**-0.5)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores if bias is None else scores + bias
    distance = np.arange(seq)[:, None] - np.arange(k.shape[1])
    mask = np.ones((1, 1, seq, k.shape[1]), bool)
    if causal:
        mask = mask & (distance >= 0)[None, None]
    if window and causal:
        mask = mask & (distance < window)[None, None]
    elif window:
        mask = mask & (np.abs(distance) <= window // 2)[None, None]
    if segments is not None:
        mask = mask & (segments[0][:, :, None] == segments[1][:, None, :])[:, None]
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1), v)


def inputs(seq: int, heads: int = 4, kv_heads: int = 2, size: int = 16, batch: int = 2):
    keys = jax.random.split(jax.random.key(0), 5)
    q = jax.random.normal(keys[0], (batch, seq, heads, size))
    k, v = (jax.random.normal(key, (batch, seq, kv_heads, size)) for key in keys[1:3])
    segments = (jax.random.uniform(keys[3], (batch, seq)) < 0.05).cumsum(-1).astype(jnp.int32)
    return q, k, v, segments, jax.random.normal(keys[4], q.shape)


CASES = [
    {},
    {"window": 50},
    {"softcap": 3.0},
    {"window": 7, "softcap": 2.0, "scale": 0.3},
    {"causal": False},
    {"causal": False, "window": 50},
]


@pytest.mark.parametrize("kernel", [Kernel.xla, Kernel.splash])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_kernels_equal_the_textbook(kernel: Kernel, packed: bool, options: dict) -> None:
    q, k, v, segments, weight = inputs(256, size=128 if kernel is Kernel.splash else 16)
    ids = (segments, segments) if packed else None

    def values(function):
        def weighted(q, k, v):
            out = function(q, k, v)
            return jnp.sum(out * weight), out

        return jax.jit(jax.grad(weighted, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    expected = values(lambda q, k, v: textbook(q, k, v, ids, **options))
    got = values(lambda q, k, v: attend(q, k, v, segments=ids, kernel=kernel, **options))
    # float32 sums of 256 terms in another order
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4 * float(jnp.abs(a).max()))


@pytest.mark.parametrize(("kv_heads", "seq"), rotated(
    ((kv_heads, seq) for kv_heads in (1, 2, 4) for seq in (1, 5, 64, 129, 300)),
    (2, 129), (1, 300), (2, 1), (2, 5), (4, 64),
))  # fmt: skip
def test_any_length_and_grouping(seq: int, kv_heads: int) -> None:
    q, k, v, segments, _ = inputs(seq, kv_heads=kv_heads)
    got = jax.jit(lambda q, k, v: attend(q, k, v, segments=(segments, segments)))(q, k, v)
    expected = jax.jit(lambda q, k, v: textbook(q, k, v, (segments, segments)))(q, k, v)
    np.testing.assert_allclose(got, expected, atol=3e-6)


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 200}], ids=str)
def test_long_rows_equal_the_textbook(options: dict) -> None:
    """1,050 queries run in blocks of 132, the last of 126, or in one block; the longest products in two pieces."""
    q, k, v, segments, weight = inputs(1050, heads=1, kv_heads=1, size=4, batch=1)
    ids = (segments // 20, segments // 20)  # about 400 tokens each

    def values(function):
        def weighted(q, k, v):
            out = function(q, k, v)
            return jnp.sum(out * weight), out

        return jax.jit(jax.grad(weighted, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    expected = values(lambda q, k, v: textbook(q, k, v, ids, **options))
    got = values(lambda q, k, v: attend(q, k, v, segments=ids, kernel=Kernel.xla, **options))
    # float32 sums of 1,050 terms in another order
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"causal": False, "window": 9}], ids=str)
def test_a_bias_and_its_gradient(options: dict) -> None:
    q, k, v, segments, weight = inputs(150)
    bias = jax.random.normal(jax.random.key(9), (4, 150, 150))

    def values(function):
        return jax.grad(lambda bias, q: jnp.sum(function(q, bias) * weight), argnums=(0, 1))(bias, q)

    expected = values(lambda q, bias: textbook(q, k, v, (segments, segments), bias, **options))
    got = values(lambda q, bias: attend(q, k, v, segments=(segments, segments), bias_NTS=bias, **options))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))


@pytest.mark.parametrize("kernel", [Kernel.xla, Kernel.splash])
def test_another_sequence_of_another_length(kernel: Kernel) -> None:
    q, _, _, queries, _ = inputs(128, size=128)
    _, k, v, _, _ = inputs(256, size=128)
    keys = jnp.concatenate([queries, queries], axis=1)
    got = attend(q, k, v, segments=(queries, keys), causal=False, kernel=kernel)
    np.testing.assert_allclose(got, textbook(q, k, v, (queries, keys), causal=False), atol=3e-5)


@pytest.mark.parametrize(("length", "grid"), [(1024, 2), (768, 2), (640, 5)])
def test_blocks_of_a_tpu_are_as_large_as_divide_the_length(length: int, grid: int) -> None:
    """Forward and backward: blocks of 512, 384 and 128."""
    q, k = (jax.ShapeDtypeStruct((1, length, heads, 64), jnp.bfloat16) for heads in (2, 1))

    def loss(*args):
        return jnp.sum(attend(*args, kernel=Kernel.splash).astype(jnp.float32))

    found = equations(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, k).jaxpr)
    grids = [one.params["grid_mapping"].grid for one in found if one.primitive.name == "pallas_call"]
    assert [sorted(one) for one in grids] == [sorted([2, grid, grid])] * 3


def test_bfloat16_keeps_its_dtype_and_is_close() -> None:
    q, k, v, _, _ = inputs(128)
    got = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), textbook(q, k, v), atol=0.05)


def test_a_softcap_with_a_bias_is_refused() -> None:
    q, k, v, _, _ = inputs(8)
    with pytest.raises(ValueError, match="softcap=2.0 with a bias"):
        attend(q, k, v, bias_NTS=jnp.zeros((4, 8, 8)), softcap=2.0)


def test_choice_of_kernel() -> None:
    def choose(kernel=Kernel.auto, **changes):
        facts = {"backend": "gpu", "dtype": jnp.dtype(jnp.bfloat16), "head_size": 64, "seq_len": 1024, "softcap": 0.0}
        return choose_kernel(kernel, **(facts | changes))

    assert choose() is Kernel.cudnn
    assert choose(backend="cpu") is Kernel.xla
    assert choose(backend="tpu") is Kernel.splash
    assert choose(backend="tpu", seq_len=100) is Kernel.xla
    assert choose(dtype=jnp.dtype(jnp.float32)) is Kernel.xla
    assert choose(softcap=50.0) is Kernel.xla
    assert choose(head_size=36) is Kernel.xla
    assert choose(head_size=256) is Kernel.cudnn
    assert choose(head_size=256, capability=8.0) is Kernel.xla
    assert choose(apart=True) is Kernel.cudnn
    assert choose(apart=True, seq_len=1023) is Kernel.xla
    assert choose(bias=True) is choose(bias=True, backend="tpu") is Kernel.xla
    assert choose(two_sided=True) is Kernel.xla
    assert choose(two_sided=True, backend="tpu") is Kernel.splash
    with pytest.raises(ConfigError, match="NVIDIA GPU, the backend is cpu"):
        choose(Kernel.cudnn, backend="cpu")
    with pytest.raises(ConfigError, match="multiple of 128, got 100"):
        choose(Kernel.splash, seq_len=100)
