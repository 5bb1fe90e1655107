"""Low-rank adapters (Hu et al. 2021, section 4): put beside linear layers, and folded into them again."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from lmkit.config.patterns import matching
from lmkit.config.sections.lora import LoraConfig
from lmkit.nn.linear import Linear
from lmkit.nn.stack import stacked
from lmkit.nn.tree import flat, nested

A, B = ".lora_a.kernel", ".lora_b.kernel"


def add_lora(model: nnx.Module, config: LoraConfig, rngs: nnx.Rngs) -> None:
    """Gives every linear layer that `config.targets` match a pair A [*ins, rank], random, and B [rank, *outs], zero.

    In a stack both have a leading dim of layers, as the kernel has. Raises ConfigError where a pattern matches none.
    """
    linears = {
        ".".join(map(str, path)): one for path, one in nnx.iter_modules(model) if isinstance(one, Linear) and path
    }
    for path in matching("lora.targets", config.targets, linears):
        linear = linears[path]
        num_in, dims = len(linear.in_shape), linear.kernel.get_metadata()["logical_axes"]
        layers = len(dims) - num_in - len(linear.out_shape)
        own = dims[layers:]
        ins = dict(zip(own[:num_in], linear.in_shape, strict=True))
        outs = dict(zip(own[num_in:], linear.out_shape, strict=True))

        def pair(rngs: nnx.Rngs, ins: Mapping = ins, outs: Mapping = outs) -> nnx.List:
            """x A has the variance of x, and B of zero leaves the model as it was."""
            middle = {"lora": config.rank}
            down = Linear(ins, middle, std=0, bias=False, rngs=rngs)
            return nnx.List([down, Linear(middle, outs, std=None, bias=False, rngs=rngs)])

        assert dims[:layers] in ((), ("layers",), ("layer",)), f"{path}: {dims}"
        made: Any = stacked(pair, linear.kernel.shape[0], rngs) if layers else pair(rngs)
        linear.lora_a, linear.lora_b = nnx.data(made[0]), nnx.data(made[1])
        linear.lora_scale = config.scale


def is_adapter(path: str) -> bool:
    """Whether a dotted path is one of the pair's."""
    return path.endswith((A, B))


def merge_lora(params: Any, scale: float) -> Any:
    """The parameters without adapters: W + scale A B in float32, laid out as W is. `scale` is LoraConfig's."""
    leaves = flat(params)
    for path in [path.removesuffix(A) for path in leaves if path.endswith(A)]:
        kernel, a, b = leaves[f"{path}.kernel"], leaves.pop(path + A), leaves.pop(path + B)
        leaves[f"{path}.kernel"] = _fold(kernel, a, b, scale)
    return nested(leaves)


def _fold(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """kernel [(L,) *ins, *outs], a [(L,) *ins, r], b [(L,) r, *outs]; L where the three are stacked."""
    layers = a.ndim + b.ndim - 2 - kernel.ndim  # 1 where stacked: it is counted twice on the left, once on the right
    ins, outs, lead = "abc"[: a.ndim - 1 - layers], "xyz"[: b.ndim - 1 - layers], "L" * layers

    def fold(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return kernel + scale * jnp.einsum(
            f"{lead}{ins}r,{lead}r{outs}->{lead}{ins}{outs}", a, b, precision=jax.lax.Precision.HIGHEST
        )

    sharding = getattr(kernel, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return jax.jit(fold)(kernel, a, b)
    return jax.jit(jax.sharding.auto_axes(fold, out_sharding=sharding))(kernel, a, b)
