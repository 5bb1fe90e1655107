"""Products of float8 operands, for linear layers with model.linear_dtype=float8 (Micikevicius et al. 2022, section 3).

Inputs and weights are rounded to e4m3, incoming gradients to e5m2, which reaches further; each array is first divided
by a scale of its own, its largest magnitude over the format's largest number, found anew in each product. Sums are
float32 within a product. What is auxiliary for the backward pass is the rounded operands, a byte a number.

qwix rounds and multiplies. What XLA is given are products of float8 arrays, which GPUs since Hopper (and Ada) have
instructions for; elsewhere XLA makes something wider of them first, and nothing is gained.
"""

import importlib.util
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmkit.config.base import ConfigError

_INPUT, _GRADIENT = jnp.float8_e4m3fn, jnp.float8_e5m2


def check_float8() -> None:
    """Raises ConfigError where the library is missing."""
    if importlib.util.find_spec("qwix") is None:
        raise ConfigError("model.linear_dtype=float8 needs qwix: pip install 'lmkit[float8]', or linear_dtype=same")


def float8_product(x: jax.Array, kernel: jax.Array, num_in: int, spec: PartitionSpec | None) -> jax.Array:
    """x [..., *ins] and kernel [*ins, *outs] to [..., *outs] in x's dtype.

    Args:
        num_in: how many dims are `ins`.
        spec: the result's layout on the mesh; None where nothing is split.
    """
    if spec is not None:
        y: Any = _product(num_in, spec, x, kernel)
        return y
    lead, outs, size = x.shape[: x.ndim - num_in], kernel.shape[num_in:], math.prod(kernel.shape[:num_in])
    y = _product(1, None, x.reshape(-1, size), kernel.reshape(size, -1))
    return y.reshape(*lead, *outs)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(num_in, spec, x, kernel):
    return _forward(num_in, spec, x, kernel)[0]


def _forward(num_in, spec, x, kernel):
    x8, kernel8, lead = _rounded(x, _INPUT), _rounded(kernel, _INPUT), x.ndim - num_in
    y = _dot(x8, kernel8, range(lead, x.ndim), range(num_in), x.dtype, spec)
    return y, (x8, kernel8, jnp.zeros((), kernel.dtype))


def _backward(num_in, spec, saved, d):
    x8, kernel8, like = saved
    d8, lead = _rounded(d, _GRADIENT), x8.qvalue.ndim - num_in
    x_spec, kernel_spec = (None if spec is None else jax.typeof(one.qvalue).sharding.spec for one in (x8, kernel8))
    outs = range(lead, d.ndim), range(num_in, kernel8.qvalue.ndim)
    d_x = _dot(d8, kernel8, *outs, d.dtype, x_spec)
    d_kernel = _dot(x8, d8, range(lead), range(lead), d.dtype, kernel_spec)  # what devices sum, as elsewhere
    return d_x, d_kernel.astype(like.dtype)


_product.defvjp(_forward, _backward)


def _rounded(x: jax.Array, dtype: Any) -> Any:
    """With one scale for all of it, over all devices.

    The barrier: else what made x, joined to the search for the largest, hands it on as the float32 of its sums.
    """
    import qwix  # an extra

    return qwix.quantize(jax.lax.optimization_barrier(x).astype(jnp.float32), dtype)


def _dot(a: Any, b: Any, a_dims: range, b_dims: range, dtype: Any, spec: PartitionSpec | None) -> jax.Array:
    """The sum over dims of `a` and of `b`; the others stand in their order, `a`'s first."""
    import qwix

    layout: dict[str, Any] = {} if spec is None else {"out_sharding": spec}
    dims = (tuple(a_dims), tuple(b_dims)), ((), ())
    return qwix.dot_general(a, b, dims, preferred_element_type=dtype, **layout)
