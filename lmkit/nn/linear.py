"""The linear layer: any dims in, any dims out, one matrix multiplication."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lmkit.config.sections.model import LinearDType
from lmkit.config.sections.optim import ParamKind
from lmkit.nn import forms
from lmkit.nn.param import param
from lmkit.nn.random import normal
from lmkit.parallel.rules import Dims, current_spec


class Linear(nnx.Module):
    """y = x W + b, where W is [*ins, *outs]; with a low-rank adapter (nn/lora.py) + scale (x A) B.

    Args:
        ins: trailing dims of the input that are contracted, by name, with sizes.
        outs: dims of the output, by name, with sizes.
        std: standard deviation of the initial weights; 0 for 1/sqrt(fan_in), None to start at zero.
        bias: whether there is one; it starts at zero.
        dtype: what the operands are rounded to.
        exact: whether float32 operands are multiplied in float32 on every platform (`forms.exact_einsum`).
    """

    def __init__(
        self, ins: Mapping[str, int], outs: Mapping[str, int], *, std: float | None, bias: bool, rngs: nnx.Rngs,
        dtype: LinearDType = LinearDType.same, exact: bool = False,
    ):  # fmt: skip
        self.exact = exact
        self.float8 = dtype is LinearDType.float8
        self.in_shape, self.out_shape = tuple(ins.values()), tuple(outs.values())
        if std is None:
            kernel = jnp.zeros(self.in_shape + self.out_shape)
        else:
            kernel = normal(rngs.params(), self.in_shape + self.out_shape)
            kernel = (std or math.prod(self.in_shape) ** -0.5) * kernel
        self.kernel = param(kernel, (*ins, *outs), ParamKind.matrix, num_in=len(ins))
        # A bias of the residual stream is tiny: replicated, its dims cannot collide with the batch's.
        bias_dims = ["norm" if dim == "embed" else dim for dim in outs]
        self.bias = param(jnp.zeros(self.out_shape), bias_dims, ParamKind.vector) if bias else None
        self.lora_a: Linear | None = None
        self.lora_b: Linear | None = None
        self.lora_scale = 0.0

    def __call__(self, x: jax.Array, out: Dims) -> jax.Array:
        """x [..., *ins] to y [..., *outs] in x's dtype; `out` names the dims of y, its layout on the mesh."""
        bias = None if self.bias is None else self.bias[...]
        kernel, num_in, spec = self.kernel.get_value(), len(self.in_shape), current_spec(out)
        y = forms.linear(x, kernel, bias, num_in, spec, float8=self.float8, exact=self.exact)
        if self.lora_a is not None and self.lora_b is not None:
            inner = self.lora_a(x, (*out[: x.ndim - len(self.in_shape)], "lora"))
            y = y + self.lora_scale * self.lora_b(inner, out)
        return checkpoint_name(y, "product")
