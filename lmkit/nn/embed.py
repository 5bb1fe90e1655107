"""The way into the residual stream (tables of vectors, positions) and the way out (logits)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lmkit.config.base import ConfigError
from lmkit.config.sections.model import Position, TransformerConfig
from lmkit.config.sections.optim import ParamKind
from lmkit.nn import forms
from lmkit.nn.check import check_stream
from lmkit.nn.dropout import dropout
from lmkit.nn.norm import stream_norm
from lmkit.nn.param import param
from lmkit.nn.position import sinusoids
from lmkit.nn.random import normal
from lmkit.parallel.rules import (
    Dims,
    current_spec,
    gathered_dims,
    on_each_device,
    reshard,
    residual_dims,
    seq_dim,
    split_axes,
)


class Embed(nnx.Module):
    """A [rows, D] table; `dim` names the rows ("vocab" or "position")."""

    def __init__(self, rows: int, size: int, *, dim: str, std: float, rngs: nnx.Rngs):
        if rows < 1:
            raise ConfigError(f"vocab_size={rows}: give the number of tokens" if dim == "vocab" else f"{rows} rows")
        self.dim = dim
        table = (std or 0.02) * normal(rngs.params(), (rows, size))
        self.table = param(table, (dim, "embed"), ParamKind.embedding)

    def __call__(self, ids: jax.Array, dtype: jnp.dtype, out: Dims) -> jax.Array:
        """int ids [...] to vectors [..., D] of `dtype`, laid out as `out` says."""
        if out[0] is None or current_spec(out) is None:
            return self.table[...].at[ids].get(out_sharding=current_spec(out)).astype(dtype)
        return reshard(_sharded_rows(self.table[...], ids, self.dim, dtype, "seq_norm" in out), out)


def _sharded_rows(table: jax.Array, ids: jax.Array, dim: str, dtype: jnp.dtype, scatter: bool) -> jax.Array:
    """Rows of a table split over `tensor` (rows) and `fsdp` (columns), for ids [B, T] split over the batch.

    The table never moves: the ids of an fsdp group go to each of its devices, which looks up its own columns of its
    own rows; a sum over `tensor` brings each token's rows together, an all-to-all its columns. The gradient of the
    table takes the same way back, so it, too, is never gathered or reduced whole over fsdp. Columns that are padded in
    memory are looked up a chunk of the sequence at a time, so that together they take what the stream does.
    """
    axes, seq = split_axes(), seq_dim(ids.shape[1])
    fsdp, split_rows = "fsdp" in axes, dim == "vocab" and "tensor" in axes
    scatter = scatter and split_rows
    out = ("batch", "seq_norm" if scatter else seq, "width")
    specs = [current_spec(dims) for dims in ((dim, "embed"), ("batch", seq), out)]

    @partial(on_each_device, in_specs=(specs[0], specs[1]), out_specs=specs[2])
    def look_up(table, ids):
        if fsdp:
            ids = lax.all_gather(ids, "fsdp", axis=0, tiled=True)
        parts = axes["tensor"] if scatter else 1  # of the sequence, each of which gives to every chunk
        chunks = math.gcd(forms.row_padding(table.shape[1]), ids.shape[1] // parts) if fsdp else 1
        some = partial(_rows_here, table, dtype=dtype, fsdp=fsdp, split_rows=split_rows, scatter=scatter)
        if chunks == 1:
            return some(ids)
        chunked = jnp.moveaxis(ids.reshape(len(ids), parts, chunks, -1), 2, 0)
        rows = lax.map(some, chunked.reshape(chunks, len(ids), -1))
        return jnp.moveaxis(rows, 0, 1).reshape(rows.shape[1], -1, rows.shape[-1])

    return look_up(table, ids)


def _rows_here(table, ids, *, dtype, fsdp, split_rows, scatter):
    """The look-up on one device, of its slice of the table and ids [B, T] of its whole group of fsdp."""
    if split_rows:
        ids = ids - lax.axis_index("tensor") * table.shape[0]
        rows = jnp.where(((ids >= 0) & (ids < table.shape[0]))[..., None], table[ids % table.shape[0]], 0.0)
    else:
        rows = table[ids]
    rows = rows.astype(dtype)
    if scatter:  # first: the all-to-all then moves 1 / tensor of the bytes
        rows = lax.psum_scatter(rows, "tensor", scatter_dimension=1, tiled=True)
    elif split_rows:
        rows = lax.psum(rows, "tensor")
    return lax.all_to_all(rows, "fsdp", split_axis=0, concat_axis=2, tiled=True) if fsdp else rows


class StreamInput(nnx.Module):
    """From vectors to the residual stream: scaled, told their inputs and kinds, normalised, with dropout.

    Args:
        length: inputs; 0 where the vectors know theirs. A learned table has `offset` more rows before the first.
        closed: the form of fixed sines, see `sinusoids`.
        types: kinds of segment; 0 for none.
        scaled: multiply by sqrt(embed_dim) (Vaswani et al. 2017, section 3.4).
        normed: normalise the sum.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        length: int,
        closed: bool = False,
        offset: int = 0,
        types: int = 0,
        scaled: bool = False,
        normed: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config, self.offset, self.scaled, self.closed = config, offset, scaled, closed
        table = {"size": config.embed_dim, "dim": "position", "std": config.init_std, "rngs": rngs}
        self.length, self.fixed = length, bool(length) and config.position is Position.sinusoidal
        learned = length and config.position is Position.learned
        self.position = Embed(length + offset, **table) if learned else None
        self.type = Embed(types, **table) if types else None
        self.norm = stream_norm(config) if normed else None

    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array | None = None,
        types_BT: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """[B, T, D] to [B, T, D]. positions_BT: int; None for 0..T-1. types_BT: int; None for 0. key: dropout on."""
        config, dims, dtype = self.config, residual_dims(x_BTD.shape[1]), x_BTD.dtype
        if self.position is not None and positions_BT is None and x_BTD.shape[1] > self.length:
            raise ConfigError(
                f"a sequence of {x_BTD.shape[1]} is longer than the model's {self.length} positions: shorten it, or "
                f"set model.max_seq_len={x_BTD.shape[1]} (model.max_source_len for the source)"
            )
        if self.scaled:
            x_BTD = x_BTD * jnp.asarray(config.embed_dim**0.5, dtype)
        inputs = default_positions(x_BTD, positions_BT)
        place_dims = (None if positions_BT is None else "batch", *dims[1:])
        if self.position is not None:
            x_BTD = x_BTD + self.position(inputs + self.offset, dtype, out=place_dims)
        elif self.fixed:
            x_BTD = x_BTD + reshard(sinusoids(inputs, config.embed_dim, closed=self.closed).astype(dtype), place_dims)
        if self.type is not None:
            kinds = jnp.zeros_like(inputs) if types_BT is None else types_BT
            x_BTD = x_BTD + self.type(kinds, dtype, out=place_dims if types_BT is None else dims)
        x_BTD = x_BTD if self.norm is None else self.norm(x_BTD)
        return dropout(x_BTD, config.dropout, key, dims)


def default_positions(x: jax.Array, positions_BT: jax.Array | None) -> jax.Array:
    """int positions of x [B, T, ...]: those given, else 0..T-1 as [1, T]."""
    return jnp.arange(x.shape[1])[None] if positions_BT is None else positions_BT


def positions_in_segments(ids_BT: jax.Array) -> jax.Array:
    """int [B, T]: how far each token is from the first of its segment, so that packed pairs begin at 0 like others."""
    dims = ("batch", seq_dim(ids_BT.shape[1]))
    ids_BT, inputs = reshard(ids_BT, ("batch", None)), jnp.arange(ids_BT.shape[1])
    first = jnp.concatenate([jnp.ones_like(ids_BT[:, :1], bool), ids_BT[:, 1:] != ids_BT[:, :-1]], axis=1)
    return reshard(inputs - jax.lax.cummax(jnp.where(first, inputs, 0), axis=1), dims)


def vocabulary_logits(
    x_BTD: jax.Array, head_VD: jax.Array, bias_V: jax.Array | None = None, softcap: float = 0.0
) -> jax.Array:
    """float32 [B, T, V] of the residual stream. Training never holds them all: see objectives/cross_entropy.py."""
    check_stream(x_BTD, head_VD.shape[1])
    dims = gathered_dims(x_BTD.shape[1])
    x_BTD = reshard(x_BTD, dims)
    logits_BTV = forms.table_product(x_BTD, head_VD, current_spec((*dims[:2], "vocab")))
    logits_BTV = logits_BTV if bias_V is None else logits_BTV + bias_V
    return softcap * jnp.tanh(logits_BTV / softcap) if softcap else logits_BTV
