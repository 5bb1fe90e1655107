"""x W on one CPU, forward and backward in the forms that the library which XLA calls there is fast in.

Measured on an Intel Xeon with AMX, GFLOP/s a core (docs/performance.md). XLA's own library: bfloat16 operands with
float32 sums run at 450 to 860 where both lie in memory as the product reads them, at 100 to 150 in every other form;
in float32 the gradient of a matrix with more rows than columns runs at 106, its transpose at 155. oneDNN, where XLA
calls it (compiler/programs.py), is fast in every form whose result has its operands' dtype: 350 to 1,400 in bfloat16.
It sums in float32, and rounds once; asked for the sums themselves, XLA would make operands of float32 first.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from lmkit.compiler.programs import onednn

_ROWS_WORTH_A_TRANSPOSE = 2048  # with fewer, what the faster product saves the transpose takes


def transposed(x: jax.Array) -> jax.Array:
    """[n, m] to [m, n], written anew: without the constraint a product would be handed the old bytes to walk across."""
    return with_layout_constraint(x.T, Layout((0, 1)))


def contract(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`jnp.einsum` to float32, for what may be rounded to the operands' dtype on the way: oneDNN does."""
    return jnp.einsum(equation, a, b, preferred_element_type=None if onednn() else jnp.float32).astype(jnp.float32)


def dot(a_nm: jax.Array, b_mk: jax.Array) -> jax.Array:
    """[n, m] [m, k] to [n, k], as `contract`."""
    return contract("nm,mk->nk", a_nm, b_mk)


@jax.custom_vjp
def cpu_product(x_nI: jax.Array, kernel_IO: jax.Array, bias_O: jax.Array | None) -> jax.Array:
    """[n, I], [I, O] and [O] to [n, O] in x's dtype, with float32 sums; parameters' gradients in their dtypes."""
    return _forward(x_nI, kernel_IO, bias_O)[0]


def _forward(x_nI, kernel_IO, bias_O):
    likes = jax.tree.map(lambda one: jnp.zeros((), one.dtype), (kernel_IO, bias_O))
    kernel_IO = kernel_IO.astype(x_nI.dtype)
    y_nO = dot(x_nI, kernel_IO).astype(x_nI.dtype)
    return y_nO if bias_O is None else y_nO + bias_O.astype(y_nO.dtype), (x_nI, kernel_IO, likes)


def _backward(saved, d_nO):
    x_nI, kernel_IO, (kernel, bias) = saved
    d_bias = None if bias is None else sum_of_rows(d_nO).astype(bias.dtype)
    d_x, d_kernel = _gradients(x_nI, kernel_IO, d_nO)
    return d_x, d_kernel.astype(kernel.dtype), d_bias


def _gradients(x_nI, kernel_IO, d_nO):
    """Of x and of the kernel, this one in float32."""
    if onednn():
        return contract("nO,IO->nI", d_nO, kernel_IO).astype(x_nI.dtype), over_rows(x_nI, d_nO)
    if x_nI.dtype != jnp.float32:
        return dot(d_nO, transposed(kernel_IO)).astype(x_nI.dtype), dot(transposed(x_nI), d_nO)
    d_x = lax.dot_general(d_nO, kernel_IO, (((1,), (1,)), ((), ())))
    if x_nI.shape[1] <= d_nO.shape[1] or len(x_nI) < _ROWS_WORTH_A_TRANSPOSE:
        return d_x, over_rows(x_nI, d_nO)
    return d_x, lax.optimization_barrier(over_rows(d_nO, x_nI)).T


def sum_of_rows(a_nm: jax.Array) -> jax.Array:
    """[n, m] to [m], as `contract`."""
    return dot(jnp.ones((1, len(a_nm)), a_nm.dtype), a_nm)[0]


def over_rows(a_nm: jax.Array, b_nk: jax.Array) -> jax.Array:
    """[n, m] and [n, k] to the sum over n, [m, k], as `contract`."""
    return contract("nm,nk->mk", a_nm, b_nk)


cpu_product.defvjp(_forward, _backward)


@jax.custom_vjp
def cpu_scaled(x_nD: jax.Array, scale_D: jax.Array) -> jax.Array:
    """x * scale in float32. The scale's gradient is a product with ones: summing the rows takes ten times as long."""
    return x_nD * scale_D


def _scaled_backward(saved, d_nD):
    x_nD, scale_D = saved
    return d_nD * scale_D, sum_of_rows(d_nD * x_nD)


cpu_scaled.defvjp(lambda x_nD, scale_D: (x_nD * scale_D, (x_nD, scale_D)), _scaled_backward)
