"""Tables of vectors: tokens and learned positions."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.sections import ParamKind
from lmkit.nn.param import param
from lmkit.parallel.rules import Dims, current_spec


class Embed(nnx.Module):
    """A [rows, D] table; `dim` names the rows ("vocab" or "position")."""

    def __init__(self, rows: int, size: int, *, dim: str, std: float, rngs: nnx.Rngs):
        table = (std or 0.02) * jax.random.normal(rngs.params(), (rows, size), jnp.float32)
        self.table = param(table, (dim, "embed"), ParamKind.embedding)

    def __call__(self, ids: jax.Array, dtype: jnp.dtype, out: Dims) -> jax.Array:
        """int ids [...] to vectors [..., D] of `dtype`, laid out as `out` says."""
        return self.table[...].at[ids].get(out_sharding=current_spec(out)).astype(dtype)
