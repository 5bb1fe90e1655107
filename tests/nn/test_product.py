"""The CPU's products: numbers, dtypes and gradients as those of the plain product."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmkit.compiler import programs as compiler
from lmkit.nn.product import cpu_product, dot, over_rows, transposed


def plain(x, kernel, bias):
    y = x @ kernel.astype(x.dtype)
    return y if bias is None else y + bias.astype(x.dtype)


@pytest.fixture(params=[False, True], ids=["xla", "onednn"])
def library(request: pytest.FixtureRequest) -> Iterator[bool]:
    """The forms for each library; both are right with either."""
    with compiler.tracing(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("ins", "outs"), [(16, 48), (48, 16)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.usefixtures("library")
def test_values_and_gradients_are_the_plain_ones(dtype, ins: int, outs: int, biased: bool) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (32, ins)).astype(dtype)
    kernel, d_y = jax.random.normal(keys[1], (ins, outs)), jax.random.normal(keys[2], (32, outs)).astype(dtype)
    bias = jax.random.normal(keys[3], (outs,)) if biased else None
    y, back = jax.jit(lambda *args: jax.vjp(cpu_product, *args))(x, kernel, bias)
    expected, reference = jax.vjp(plain, *jax.tree.map(lambda one: one.astype(jnp.float32), (x, kernel, bias)))
    found, wanted = (y, *jax.jit(back)(d_y)), (expected, *reference(d_y.astype(jnp.float32)))
    kinds = [one.dtype for one in jax.tree.leaves(found)]
    assert kinds == [dtype, dtype, jnp.float32, jnp.float32][: len(kinds)]
    tolerance = 1e-5 if dtype == jnp.float32 else 0.02
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = float(jnp.max(jnp.abs(other)))
        np.testing.assert_allclose(np.asarray(one, np.float32), other, atol=tolerance * scale)


def test_the_kernels_gradient_is_not_rounded() -> None:
    """A sum of 4,097 numbers of bfloat16 with a float32 kernel's own precision, where XLA's own library makes it."""
    x, kernel = jnp.ones((4097, 4), jnp.bfloat16), jnp.zeros((4, 4))
    _, d_kernel, d_bias = jax.vjp(cpu_product, x, kernel, jnp.zeros(4))[1](jnp.ones((4097, 4), jnp.bfloat16))
    assert float(d_kernel[0, 0]) == 4097
    assert float(d_bias[0]) == 4097


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_example_has_its_gradient_under_vmap(dtype) -> None:
    x, kernel = jnp.arange(24.0).reshape(3, 2, 4).astype(dtype), jnp.ones((4, 5))
    loss = jax.grad(lambda kernel, x: cpu_product(x, kernel, None).astype(jnp.float32).sum())
    each = jax.vmap(loss, in_axes=(None, 0))(kernel, x)
    np.testing.assert_allclose(each, jnp.stack([loss(kernel, one) for one in x]))


def test_what_onednn_rounds_it_rounds_once(library: bool) -> None:
    """4,097 ones: 4,096 in bfloat16, 256 where the sum itself were of bfloat16, whose 256 + 1 is 256."""
    ones = jnp.ones((4097, 4), jnp.bfloat16)
    rows = jax.jit(over_rows)(ones, ones)
    assert rows.dtype == jnp.float32
    assert float(rows[0, 0]) in ((4096, 4097) if library else (4097,))


@pytest.mark.usefixtures("library")
def test_the_parts() -> None:
    a, b = jnp.arange(6.0).reshape(2, 3), jnp.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(jax.jit(transposed)(a), np.asarray(a).T)
    np.testing.assert_array_equal(jax.jit(over_rows)(a, b), np.asarray(a).T @ np.asarray(b))
    np.testing.assert_array_equal(jax.jit(dot)(a.T, b), np.asarray(a).T @ np.asarray(b))
