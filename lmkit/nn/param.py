"""Parameters, declared once: value, dims, and what the optimiser must know."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from lmkit.config.sections.model import DType, LinearDType, ModelConfig, TransformerConfig
from lmkit.config.sections.optim import ParamKind
from lmkit.nn.forms import default_dtype


def param(value: jax.Array, dims: Sequence[str], kind: ParamKind, num_in: int = 0) -> nnx.Param:
    """A float32 parameter.

    `dims` names its logical dimensions (parallel/rules.py), `kind` says whether it decays and who updates it,
    `num_in` counts the leading dims that a matrix contracts (Muon needs to know).
    """
    assert len(dims) == value.ndim, f"{len(dims)} dims for shape {value.shape}"
    return nnx.Param(value, logical_axes=tuple(dims), kind=kind, num_in=num_in)


def compute_dtype(dtype: DType) -> jnp.dtype:
    """bfloat16 on accelerators and float32 on CPU, unless asked."""
    if dtype is DType.auto:
        return default_dtype()
    return jnp.dtype(dtype.name)


@dataclass(frozen=True)
class ParamSpec:
    """What is known of a parameter without its value. A leaf to jax.tree."""

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    kind: ParamKind
    num_in: int

    @property
    def in_stack(self) -> bool:
        """Whether it is a layer's."""
        return self.dims[:1] in (("layers",), ("layer",))

    @property
    def stacked(self) -> int:
        """Leading dims that are not the matrix's own: layers of a stack, experts of a mixture."""
        return next((n for n, dim in enumerate(self.dims) if dim not in ("layers", "layer", "expert")), len(self.dims))

    @property
    def exact(self) -> bool:
        """Whether it computes in float32 in every model: routers, relative positions and vectors do."""
        return self.kind is ParamKind.vector or self.dims[-1] == "expert" or self.dims[-2:] == ("position", "heads")


def param_specs(state: nnx.State) -> dict:
    """The spec of every parameter, in a tree shaped like `nnx.to_pure_dict(state)`."""
    flat = {
        path: ParamSpec(
            tuple(v.shape), v.get_metadata()["logical_axes"], v.get_metadata()["kind"], v.get_metadata()["num_in"]
        )
        for path, v in nnx.to_flat_state(state)
    }
    return traverse_util.unflatten_dict(flat)


def resting_dtype(config: ModelConfig, spec: ParamSpec) -> jnp.dtype:
    """The dtype of a parameter that does not train: the compute dtype where it is cast to that at each use.

    So matrices and tables take half of the bytes and give the same numbers. Routers, relative positions and vectors
    compute in float32; what is rounded to float8 is rounded from float32.
    """
    parts = config.towers().values()
    if spec.exact or any(is_float8(part, spec) for part in parts) or len({part.dtype for part in parts}) != 1:
        return jnp.dtype(jnp.float32)
    return compute_dtype(next(iter(parts)).dtype)


def is_float8(config: TransformerConfig, spec: ParamSpec) -> bool:
    """Whether a parameter is multiplied in float8: a matrix of a layer, but for experts', their router's, adapters'."""
    chosen = config.linear_dtype is LinearDType.float8
    return chosen and spec.in_stack and spec.kind is ParamKind.matrix and not {"expert", "lora"} & {*spec.dims}
