"""The linear layer: any dims in, any dims out, one matrix multiplication."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from lmkit.config.sections.model import LinearDType
from lmkit.config.sections.optim import ParamKind
from lmkit.nn.float8 import float8_product
from lmkit.nn.param import param
from lmkit.nn.product import cpu_product
from lmkit.nn.random import normal
from lmkit.parallel.devices import platform
from lmkit.parallel.rules import Dims, current_spec

_IN, _OUT, _LEAD = "abc", "xyz", "klm"


class Linear(nnx.Module):
    """y = x W + b, where W is [*ins, *outs]; with a low-rank adapter (nn/lora.py) + scale (x A) B.

    Args:
        ins: trailing dims of the input that are contracted, by name, with sizes.
        outs: dims of the output, by name, with sizes.
        std: standard deviation of the initial weights; 0 for 1/sqrt(fan_in), None to start at zero.
        bias: whether there is one; it starts at zero.
        dtype: what the operands are rounded to.
    """

    def __init__(
        self, ins: Mapping[str, int], outs: Mapping[str, int], *, std: float | None, bias: bool, rngs: nnx.Rngs,
        dtype: LinearDType = LinearDType.same,
    ):  # fmt: skip
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
        size, lead = math.prod(self.in_shape), x.shape[: x.ndim - len(self.in_shape)]
        spec, cpu = current_spec(out), platform() == "cpu"
        a, b, c = _IN[: len(self.in_shape)], _OUT[: len(self.out_shape)], _LEAD[: len(lead)]
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        # The weight gradient of [B, T, ...] contracts two dims, which XLA's CPU library does three times slower: one
        # flat matmul there, wherever only the first dim is split. (The TPU's compiler would gather kernels once more.)
        if self.float8:
            y = float8_product(x, kernel, len(self.in_shape), spec)
        elif spec is None and cpu:
            flat_bias = None if bias is None else bias.reshape(-1)
            y, bias = cpu_product(x.reshape(-1, size), kernel.reshape(size, -1), flat_bias), None
        elif spec is None:
            y = x.reshape(-1, size) @ kernel.astype(x.dtype).reshape(size, -1)
        elif cpu and all(_only_first(s[: len(lead)]) for s in (spec, jax.typeof(x).sharding.spec)):
            flat = PartitionSpec(spec[0], *spec[len(lead) :])
            kernel = kernel.astype(x.dtype)
            y = jnp.einsum(f"k{a},{a}{b}->k{b}", x.reshape(-1, *self.in_shape), kernel, out_sharding=flat)
        else:
            y = jnp.einsum(f"{c}{a},{a}{b}->{c}{b}", x, kernel.astype(x.dtype), out_sharding=spec)
        y = y.reshape(*lead, *self.out_shape)
        if self.lora_a is not None and self.lora_b is not None:
            inner = self.lora_a(x, (*out[: len(lead)], "lora"))
            y = y + self.lora_scale * self.lora_b(inner, out)
        return checkpoint_name(y if bias is None else y + bias.astype(x.dtype), "product")


def _only_first(entries: tuple) -> bool:
    """Whether at most the first dim of several is split, so that all of them can become one."""
    return len(entries) > 1 and all(entry is None for entry in entries[1:])
