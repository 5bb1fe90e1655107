"""Tokens by their own expert's matrix, a block of rows at a time, where the platform has no grouped product of its own.

`jax.lax.ragged_dot` is one kernel on a TPU. Elsewhere XLA writes it as a product of all tokens with all experts: e
times the FLOPs, and the tokens e times in memory. Here the rows of each expert begin at a multiple of `block`, a loop
takes one block after the other with one matrix, and ends with the last block that has rows.

S rows in all, `block` of them at a time; e experts; I inputs, O outputs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lmkit.nn.product import contract


def blocked_product(x_SI: jax.Array, w_eIO: jax.Array, blocks_e: jax.Array, block: int) -> jax.Array:
    """[S, I] and [e, I, O] to [S, O] in x's dtype, with float32 sums; rows behind the last block are 0.

    Args:
        blocks_e: int [e], how many blocks each expert has; they follow each other in x.
        block: rows of a block; S is a multiple of it.
    """
    args = x_SI, w_eIO, blocks_e
    axes = frozenset().union(*map(_axes, args))
    return _product(*(_varying(one, axes) for one in args), block)


def _axes(x: jax.Array) -> frozenset[str]:
    """Axes of a shard_map around this over which the values differ."""
    return jax.typeof(x).manual_axis_type.varying


def _varying(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    missing = tuple(sorted(axes - _axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x_SI, w_eIO, blocks_e, block):
    return _each_block(x_SI, w_eIO, blocks_e, block, "bI,IO->bO")


def _forward(x_SI, w_eIO, blocks_e, block):
    return _product(x_SI, w_eIO, blocks_e, block), (x_SI, w_eIO, blocks_e)


def _backward(block, saved, d_SO):
    x_SI, w_eIO, blocks_e = saved
    d_x = _each_block(d_SO, w_eIO, blocks_e, block, "bO,IO->bI")
    return d_x.astype(x_SI.dtype), _matrices(x_SI, d_SO, w_eIO, blocks_e, block), None


_product.defvjp(_forward, _backward)


def _each_block(x_SI, w_eIO, blocks_e, block: int, equation: str) -> jax.Array:
    ends_e = jnp.cumsum(blocks_e)
    width = w_eIO.shape[2 if equation.endswith("O") else 1]

    def step(k, y_SO):
        w = lax.dynamic_index_in_dim(w_eIO, _expert(k, ends_e), keepdims=False)
        y_bO = contract(equation, lax.dynamic_slice_in_dim(x_SI, k * block, block), w)
        return lax.dynamic_update_slice_in_dim(y_SO, y_bO.astype(y_SO.dtype), k * block, 0)

    empty = _varying(jnp.zeros((len(x_SI), width), x_SI.dtype), _axes(x_SI))
    return lax.fori_loop(0, ends_e[-1], step, empty)


def _matrices(x_SI, d_SO, w_eIO, blocks_e, block: int) -> jax.Array:
    """The matrices' gradient [e, I, O]: float32 sums over the blocks of an expert, which follow each other."""
    ends_e = jnp.cumsum(blocks_e)

    def step(k, carry):
        sum_IO, d_w = carry
        expert = _expert(k, ends_e)
        rows = (lax.dynamic_slice_in_dim(one, k * block, block) for one in (x_SI, d_SO))
        first = k == ends_e[expert] - blocks_e[expert]
        sum_IO = jnp.where(first, 0.0, sum_IO) + contract("bI,bO->IO", *rows)
        return sum_IO, lax.dynamic_update_index_in_dim(d_w, sum_IO.astype(d_w.dtype), expert, 0)

    axes = _axes(x_SI)
    empty = (jnp.zeros(w_eIO.shape[1:], jnp.float32), jnp.zeros(w_eIO.shape, w_eIO.dtype))
    return lax.fori_loop(0, ends_e[-1], step, tuple(_varying(one, axes) for one in empty))[1]


def _expert(k: jax.Array, ends_e: jax.Array) -> jax.Array:
    """The expert that a block belongs to."""
    return jnp.sum(k >= ends_e)
