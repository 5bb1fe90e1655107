"""Tokens to their experts and back, on each device of a mesh: all of them, or as many as there is room for.

Outside the experts the axis `expert` has its share of the rows, inside them its share of the experts, so tokens travel
over it to their experts and back. Both ways run inside a shard_map, or on one device without any.

On this device: B rows, T places of each, D width, k choices a token, e experts. E experts in all; n tokens together.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

# product(x, w): each token by its own expert's matrix, of w [e, in, out]
Product = Callable[[jax.Array, jax.Array], jax.Array]
# multiply(x, w, rows, block): the same, of rows sorted by expert; rows [e], each expert's, multiples of the block
Grouped = Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]
RunExperts = Callable[[jax.Array, Product], jax.Array]  # tokens through the experts of this device


def dropless(
    run: RunExperts, x_BTD: jax.Array, weights_BTk: jax.Array, choices_BTk: jax.Array, num_here: int,
    multiply: Grouped, block: int, *, expert: bool,
) -> jax.Array:  # fmt: skip
    """sum over the choices of weight * expert(x), [B, T, D]: sorted by expert, grouped products, put back and summed.

    With `expert` each device gathers the tokens of all its group, works on those of its own `num_here` experts, and
    the sums are scattered back. Its buffers have room for all of the group's choices: they may all be its own.

    Args:
        multiply: the grouped product.
        block: rows of an expert begin at a multiple of it in the buffers, of S rows; the rows between are 0.
    """
    first = 0
    if expert:
        x_BTD, weights_BTk, choices_BTk = (
            lax.all_gather(x, "expert", axis=0, tiled=True) for x in (x_BTD, weights_BTk, choices_BTk)
        )
        first = lax.axis_index("expert") * num_here
    batch, seq, width = x_BTD.shape
    number_n = choices_BTk.reshape(-1) - first
    number_n = jnp.where((number_n >= 0) & (number_n < num_here), number_n, num_here)  # the others' go last
    order_n, size_e = jnp.argsort(number_n, stable=True), jnp.bincount(number_n, length=num_here + 1)[:num_here]
    rows_e = -(-size_e.astype(jnp.int32) // block) * block
    # A row's choice: its number among its expert's rows, counted on from the expert's first choice.
    rows = buffer_rows(len(order_n), num_here, block)
    ends_e = jnp.cumsum(rows_e)
    expert_S = jnp.sum(jnp.arange(rows)[:, None] >= ends_e, axis=1)
    begin_e, sorted_e = ends_e - rows_e, jnp.cumsum(size_e) - size_e
    inside_S = jnp.arange(rows) - begin_e.at[expert_S].get(mode="fill", fill_value=0)
    here_S = inside_S < size_e.at[expert_S].get(mode="fill", fill_value=0)
    place_S = jnp.where(here_S, inside_S + sorted_e.at[expert_S].get(mode="fill", fill_value=0), len(order_n))
    choice_S = order_n.at[place_S].get(mode="fill", fill_value=len(order_n))
    token_S, here_S1 = choice_S // choices_BTk.shape[-1], here_S[:, None]
    x_SD = x_BTD.reshape(-1, width).at[token_S].get(mode="fill", fill_value=0)
    weight_S1 = weights_BTk.reshape(-1).at[choice_S].get(mode="fill", fill_value=0)[:, None]
    each_SD = run(x_SD, lambda x, w: multiply(x, w, rows_e, block))
    each_SD = jnp.where(here_S1, each_SD * weight_S1, 0)  # the grouped product says nothing of the rows behind
    y_BTD = jnp.zeros((batch * seq, width), x_BTD.dtype).at[token_S].add(each_SD, mode="drop").reshape(x_BTD.shape)
    return lax.psum_scatter(y_BTD, "expert", scatter_dimension=0, tiled=True) if expert else y_BTD


def buffer_rows(choices: int, experts: int, block: int) -> int:
    """Rows for so many choices, however they fall on so many experts, each expert's rows a multiple of the block."""
    return (choices + experts * (block - 1)) // block * block


def with_capacity(
    run: RunExperts, x_BTD: jax.Array, weights_BTk: jax.Array, choices_BTk: jax.Array, num_experts: int,
    capacity: int, *, expert: bool, context: bool,
) -> jax.Array:  # fmt: skip
    """The same where an expert takes only the first `capacity` tokens of a row that choose it (Lepikhin et al. 2021,
    section 2.2, with a row as the group); the others count as zero. A row's tokens have slots [E, B, capacity].

    With `expert` the slots of all rows are exchanged, [e, more rows, capacity], and come back. With `context` each
    device has its own places' slots, and counts on from the devices before it.
    """
    batch, seq, width = x_BTD.shape
    chosen_BTE = jnp.sum(choices_BTk[..., None] == jnp.arange(num_experts), axis=2, dtype=jnp.int32)
    slot_BTk = jnp.take_along_axis(jnp.cumsum(chosen_BTE, axis=1) - chosen_BTE, choices_BTk, axis=2)
    rank_BTk = slot_BTk
    if context:
        taken_pBE = lax.all_gather(jnp.sum(chosen_BTE, axis=1), "context")
        before_p = jnp.arange(len(taken_pBE)) < lax.axis_index("context")
        taken_B1E = jnp.sum(jnp.where(before_p[:, None, None], taken_pBE, 0), axis=0)[:, None]
        rank_BTk += jnp.take_along_axis(taken_B1E, choices_BTk, axis=2)
    slots = min(capacity, seq)
    index_BTk = (choices_BTk * batch + jnp.arange(batch)[:, None, None]) * slots + slot_BTk
    total, index_n = num_experts * batch * slots, index_BTk.reshape(-1)
    outside_n = total + jnp.arange(len(index_n))  # where what is dropped goes
    index_n = jnp.where(rank_BTk.reshape(-1) < capacity, index_n, outside_n)
    copies_nD = x_BTD.reshape(-1, width)[jnp.arange(len(index_n)) // choices_BTk.shape[-1]]
    sent_nD = jnp.zeros((total, width), x_BTD.dtype).at[index_n].set(copies_nD, mode="drop", unique_indices=True)
    sent_EnD = sent_nD.reshape(num_experts, -1, width)
    if expert:
        sent_EnD = lax.all_to_all(sent_EnD, "expert", split_axis=0, concat_axis=1, tiled=True)
    back_EnD = run(sent_EnD, lambda x, w: jnp.einsum("enI,eIO->enO", x, w))
    if expert:
        back_EnD = lax.all_to_all(back_EnD, "expert", split_axis=1, concat_axis=0, tiled=True)
    each_nD = back_EnD.reshape(total, width).at[index_n].get(mode="fill", fill_value=0, unique_indices=True)
    return jnp.einsum("BTkD,BTk->BTD", each_nD.reshape(*choices_BTk.shape, width), weights_BTk)
