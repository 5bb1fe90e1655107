"""x W of few rows on one CPU, where the time is that of reading W from memory: a decoding step is made of them.

Measured on one core of an AMD EPYC whose memory gives 22 GB/s to a sum (docs/performance.md). Of a stack's [L, I, O] a
scan copies each layer's slice before XLA's library reads it: 13 GB/s at one row. Kept as [L, O, I], a loop of XLA's own
reads the slice in place, 16 numbers of a row at a time: 20 to 25 GB/s up to four rows. With more, arithmetic takes
longer than memory; there the library is 1.5 to 2.4 times as fast with W on the left and x on the right as the other
way round.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lmkit.compiler.programs import FewRows, few_rows
from lmkit.config.sections.optim import ParamKind

LANES = 16  # float32 numbers of the widest vector that CPUs have
_FEW = 4  # rows up to which the loop is faster than the library
_LEFT = 128  # rows up to which the library is faster with the matrix on the left
_CHAINS = 2  # sums side by side: one alone waits for its own last addition
_ALIKE = 16  # rows of every product of fewer, where they are to be alike


@partial(jax.tree_util.register_dataclass, data_fields=["matrix", "layer"], meta_fields=["shape"])
@dataclass(frozen=True)
class Turned:
    """A matrix [*ins, *outs] kept as [O, I], or those of all layers as [L, O, I].

    Attributes:
        matrix: [O, I], or [L, O, I] while no layer is chosen, or where one is by `layer`.
        shape: *ins, *outs, of one matrix.
        layer: int32 []; None where `matrix` is [O, I], and before one is chosen.
    """

    matrix: jax.Array
    shape: tuple[int, ...]
    layer: jax.Array | None = None

    def of_layer(self, layer: jax.Array) -> "Turned":
        """That layer's matrix, to be read where it is."""
        return Turned(self.matrix, self.shape, layer)

    def whole_OI(self) -> jax.Array:
        """[O, I]; of a layer a copy."""
        return self.matrix if self.layer is None else lax.dynamic_index_in_dim(self.matrix, self.layer, keepdims=False)

    def columns_ON(self, first: int) -> jax.Array:
        """[O, 16]: the inputs from `first` on. XLA reads them in place, which it does not where `whole_OI` is cut."""
        if self.layer is None:
            return self.matrix[:, first : first + LANES]
        outs = self.matrix.shape[1]
        return lax.dynamic_slice(self.matrix, (self.layer, 0, first), (1, outs, LANES))[0]


def turned(params: Any, specs: Any) -> Any:
    """The parameters with the matrices of layers turned, as far as products can take them; the rest as it is.

    Args:
        params: arrays, in a tree of dicts.
        specs: what is known of each (`nn/param.py`).
    """

    def one(spec: Any, x: jax.Array) -> Any:
        ins = x.shape[1 : 1 + spec.num_in]
        size = math.prod(ins)
        if not (spec.in_stack and spec.kind is ParamKind.matrix and spec.num_in) or size % LANES:
            return x
        if {"expert", "lora"} & {*spec.dims}:
            return x
        return Turned(_turn(x, size), x.shape[1:])

    return jax.tree.map(one, specs, params)


@partial(jax.jit, static_argnums=1)
def _turn(x: jax.Array, size: int) -> jax.Array:
    return jnp.swapaxes(x.reshape(len(x), size, -1), 1, 2)


def for_turned(x_nI: jax.Array) -> bool:
    """Whether `turned_product` is faster for a matrix that lies in memory as [O, I] anyway, in this program."""
    return few_rows() is not FewRows.plain and len(x_nI) <= _LEFT and x_nI.shape[1] % LANES == 0


def turned_product(x_nI: jax.Array, w: Turned) -> jax.Array:
    """[n, I] to [n, O] in float32, of operands rounded to x's dtype.

    In programs whose few rows are `fast`, a row has the same bits as one of one to four rows; where they are `alike`,
    as one of one to 16.
    """
    rows = len(x_nI)
    if few_rows() is FewRows.fast and rows <= _FEW:
        return _in_lanes(x_nI, w)
    if rows <= _LEFT:
        return _on_the_left(padded(x_nI), w)[:rows]
    w_OI = w.whole_OI().astype(x_nI.dtype)
    return lax.dot_general(x_nI, w_OI, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def padded(x_nI: jax.Array) -> jax.Array:
    """With rows of zeros up to 16, in a program whose few rows are to be alike."""
    missing = max(_ALIKE - len(x_nI), 0) if few_rows() is FewRows.alike else 0
    return jnp.pad(x_nI, ((0, missing), (0, 0))) if missing else x_nI


def _on_the_left(x_nI: jax.Array, w: Turned) -> jax.Array:
    """By the library. Without the barrier XLA would fold the transpose into the product, and exchange its sides."""
    w_OI = w.whole_OI().astype(x_nI.dtype)
    y_On = lax.dot_general(w_OI, x_nI, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return lax.optimization_barrier(y_On).T


def _in_lanes(x_nI: jax.Array, w: Turned) -> jax.Array:
    """By one loop over the matrix: 16 sums for each output and row, which a product with ones then adds up."""
    rows, size = x_nI.shape
    sums: list[Any] = [0.0] * _CHAINS
    for number, first in enumerate(range(0, size, LANES)):
        w_ON, x_nN = w.columns_ON(first).astype(x_nI.dtype), x_nI[:, first : first + LANES]
        term_OnN = w_ON[:, None].astype(jnp.float32) * x_nN.astype(jnp.float32)
        sums[number % _CHAINS] = term_OnN if number < _CHAINS else sums[number % _CHAINS] + term_OnN
    sum_OnN = lax.optimization_barrier(sum(sums[1:], sums[0]))
    return jnp.dot(sum_OnN.reshape(-1, LANES), jnp.ones(LANES)).reshape(-1, rows).T
