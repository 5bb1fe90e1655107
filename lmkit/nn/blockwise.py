"""Attention in plain XLA, a block of queries at a time, with a backward pass that recomputes the weights.

The identities are those of FlashAttention (Dao et al. 2022, section 3.1): the forward pass keeps each query's
log-sum-exp, from which the backward pass makes the weights again. A block of causal queries multiplies only the
keys it may see, so half of the work and nearly all of the [T, S] memory of the textbook form are gone.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.export import is_symbolic_dim

from lmkit.nn.product import contract

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a row that sees nothing gives 0, not NaN
_MAX_BLOCKS, _MIN_BLOCK = 8, 128  # smaller ones save little and compile longer
_MAX_SCORES = 2**20  # of a head that exist at once: where there are more, blocks run in pieces, one after the other
_MIN_ROWS = 64  # of a piece
Segments = tuple[jax.Array, jax.Array]  # int [B, T] of the queries, int [B, S] of the keys


class Options(NamedTuple):
    """What decides who sees whom; see `attend`."""

    causal: bool
    window: int
    softcap: float
    scale: float


class _Block(NamedTuple):
    """Queries [start, stop) and the keys [first, last) that any of them may see."""

    start: int
    stop: int
    first: int
    last: int


def _blocks(num_queries: int, num_keys: int, options: Options, anywhere: bool) -> Iterator[_Block]:
    """The blocks of a product; `anywhere`: what the keys' distance is will only be known when it runs."""
    before, after = (None, None) if anywhere else reach(options)
    cut = options.causal or options.window
    size = max(-(-num_queries // _MAX_BLOCKS), _MIN_BLOCK) if cut else num_queries
    for start in range(0, num_queries, size):
        stop = min(start + size, num_queries)
        first = 0 if before is None else max(start - before, 0)
        yield _Block(start, stop, first, num_keys if after is None else min(stop + after, num_keys))


def reach(options: Any) -> tuple[int | None, int | None]:
    """How many positions before and after its own one sees; None for all."""
    if options.causal:
        return (options.window - 1 if options.window else None), 0
    return (options.window // 2,) * 2 if options.window else (None, None)


def _mask(rows: int, keys: int, segments: Segments | None, options: Options, base: Any) -> jax.Array | None:
    """bool [B or 1, 1, 1, rows, keys], True where a query sees a key; None where all see all.

    base: how far the first query is behind the first key.
    """
    mask = None
    before, after = reach(options)
    if before is not None or after is not None:
        distance = base + jnp.arange(rows)[:, None] - jnp.arange(keys)[None, :]
        mask = jnp.ones(distance.shape, bool) if after is None else distance >= -after
        mask = (mask if before is None else mask & (distance <= before))[None, None, None]
    if segments is not None:
        same = (segments[0][:, :, None] == segments[1][:, None, :])[:, None, None]
        mask = same if mask is None else mask & same
    return mask


def _scores(
    q_BKGtH, k_BKsH, segments, bias_Nts, options: Options, base: Any
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Masked float32 scores [B, K, G, t, s], the mask, and tanh(scores / softcap) where there is one."""
    shape, keys = q_BKGtH.shape, k_BKsH.shape[2]
    flat = q_BKGtH.reshape(*shape[:2], -1, shape[-1])  # all query heads of a key head in one product
    scores = jnp.einsum("BKtH,BKsH->BKts", flat, k_BKsH, preferred_element_type=jnp.float32)
    scores = scores.reshape(*shape[:4], keys)
    capped = None
    if options.softcap:
        capped = jnp.tanh(scores / options.softcap)
        scores = options.softcap * capped
    if bias_Nts is not None:
        scores += bias_Nts.reshape(shape[1], -1, *bias_Nts.shape[1:])
    mask = _mask(shape[3], keys, segments, options, base)
    return (scores if mask is None else jnp.where(mask, scores, _MASKED)), mask, capped


def _cut(block: _Block, segments: Segments | None, bias_NTS) -> tuple[Any, Any, Any]:
    """A block's share: the segments of its queries and of its keys, and the bias."""
    rows, keys = slice(block.start, block.stop), slice(block.first, block.last)
    own, others = (None, None) if segments is None else (segments[0][:, rows], segments[1][:, keys])
    return own, others, None if bias_NTS is None else bias_NTS[:, rows, keys]


def _pieces(rows: int, keys: int, queries: int) -> int:
    """Into how many pieces, one after the other, the rows of a block are cut so that few scores exist at once.

    Small blocks of a large product are cut, too: outside of a loop a scheduler may hold the scores of all blocks.
    """
    pieces, most = 1, _MAX_SCORES // _MAX_BLOCKS
    while queries * keys > _MAX_SCORES and rows % (2 * pieces) == 0 and rows // pieces * keys > most:
        pieces *= 2
        most = most if rows // pieces > _MIN_ROWS else _MAX_SCORES
    return pieces


def scores_at_once(queries: int, keys: int, cut: bool = True) -> int:
    """Of a head and row: of a block, or of the piece that it is cut into; `cut`: causal or windowed."""
    rows = -(-queries // _MAX_BLOCKS) if cut else queries
    return rows * keys // _pieces(rows, keys, queries)


def _tied(q_BKGTH, segments: Segments | None, keys: int, offset: Any) -> tuple[Any, Segments | None, Any]:
    """The queries, the segments and the offset, the last two as if they came from the queries, where masks are large.

    A scan over layers makes what does not depend on a layer once, beforehand, and holds it: good for small masks, T x T
    for large ones.
    """
    if q_BKGTH.shape[3] * keys <= _MAX_SCORES:
        return q_BKGTH, segments, offset
    zero = jnp.zeros((), jnp.int32) if offset is None else offset
    return jax.lax.optimization_barrier((q_BKGTH, segments, zero))


def _split(x: jax.Array | None, pieces: int, axis: int) -> jax.Array | None:
    """[..., t, ...] to [pieces, ..., t / pieces, ...]."""
    if x is None:
        return None
    shape = (*x.shape[:axis], pieces, x.shape[axis] // pieces, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _join(x: jax.Array, axis: int) -> jax.Array:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def group(q_BTNH: jax.Array, num_keys: int, scale: float) -> jax.Array:
    """[B, T, N, H], times `scale`, to [B, K, G, T, H]: the query heads of each key head."""
    batch, seq, heads, size = q_BTNH.shape
    return (q_BTNH * scale).reshape(batch, seq, num_keys, heads // num_keys, size).transpose(0, 2, 3, 1, 4)


def ungroup(x_BKGTH: jax.Array) -> jax.Array:
    """[B, K, G, T, H] to [B, T, N, H]."""
    batch, keys, groups, seq, size = x_BKGTH.shape
    return x_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, seq, keys * groups, size)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def blockwise_attention(q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS, options: Options) -> jax.Array:
    """softmax(scale q k^T + bias + mask) v; shapes and options as in `attend`."""
    return _forward(q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS, options)[0]


def _forward(q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS, options: Options):
    q = group(q_BTNH, k_BSKH.shape[2], options.scale)
    k, v = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    out, log_sum = forward(q, k, v, segments, bias_NTS, options)
    out, log_sum = checkpoint_name(ungroup(out.astype(q.dtype)), "attended"), checkpoint_name(log_sum, "log_sum")
    return out, (q, k, v, segments, bias_NTS, out, log_sum)


def forward(q_BKGTH, k_BKSH, v_BKSH, segments, bias_NTS, options: Options, offset: Any = None):
    """Grouped and scaled queries to float32 (attention [B, K, G, T, H], log of the weights' sum [B, K, G, T, 1]).

    offset: how far the first query is behind the first key, where that is not 0: an int32 scalar.

    Lengths that are symbolic are not cut into blocks.
    """
    if is_symbolic_dim(q_BKGTH.shape[3]) or is_symbolic_dim(k_BKSH.shape[2]):  # of an exported program
        return _attend_rows(q_BKGTH, k_BKSH, v_BKSH, segments, bias_NTS, options, 0 if offset is None else offset)
    results, blocks = [], list(_blocks(q_BKGTH.shape[3], k_BKSH.shape[2], options, offset is not None))
    q_BKGTH, segments, offset = _tied(q_BKGTH, segments, k_BKSH.shape[2], offset)
    for block in blocks:
        rows, keys = slice(block.start, block.stop), slice(block.first, block.last)
        k, v, q = k_BKSH[:, :, keys], v_BKSH[:, :, keys], q_BKGTH[:, :, :, rows]
        own, others, bias = _cut(block, segments, bias_NTS)
        base = block.start - block.first + (0 if offset is None else offset)

        def piece(xs, k=k, v=v, others=others):
            q, own, bias, base = xs
            return _attend_rows(q, k, v, None if own is None else (own, others), bias, options, base)

        pieces = _pieces(q.shape[3], k.shape[2], q_BKGTH.shape[3])
        if pieces == 1:
            results.append(piece((q, own, bias, base)))
            continue
        each = base + jnp.arange(pieces) * (q.shape[3] // pieces)
        parts = jax.lax.map(piece, (_split(q, pieces, 3), _split(own, pieces, 1), _split(bias, pieces, 1), each))
        results.append(tuple(_join(part, 3) for part in parts))
    return tuple(jnp.concatenate(parts, axis=3) for parts in zip(*results, strict=True))


def _attend_rows(q, k, v, segments, bias, options: Options, base: Any) -> tuple[jax.Array, jax.Array]:
    """The result and the log-sum of a few queries."""
    scores, mask, _ = _scores(q, k, segments, bias, options, base)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    flat = weights.reshape(*weights.shape[:2], -1, weights.shape[-1]).astype(v.dtype)
    out = contract("BKts,BKsH->BKtH", flat, v)
    out = out.reshape(*weights.shape[:4], -1) / total
    return out if mask is None else jnp.where(top > _MASKED, out, 0.0), top + jnp.log(total)


def _backward(options: Options, saved, d_out_BTNH):
    q, k, v, segments, bias_NTS, out_BTNH, log_sum = saved
    shared, d_out = group(shared_part(d_out_BTNH, out_BTNH), k.shape[1], 1.0), group(d_out_BTNH, k.shape[1], 1.0)
    d_q, d_k, d_v, d_bias = backward(q, k, v, segments, bias_NTS, d_out, shared, log_sum, options)
    back = [x.astype(q.dtype).transpose(0, 2, 1, 3) for x in (d_k, d_v)]
    return ungroup(d_q.astype(q.dtype)), *back, None, d_bias


def shared_part(d_out: jax.Array, out: jax.Array) -> jax.Array:
    """[..., H] to float32 [..., 1]: the sum over keys of weight * d_weight (FlashAttention, equation 4)."""
    return jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)


def backward(q, k, v, segments, bias_NTS, d_out, shared, log_sum, options: Options, offset: Any = None):
    """float32 gradients of q (before it was scaled), k, v and the bias; arguments as in `forward`."""
    d_qs, d_k, d_v = [], jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    d_bias = None if bias_NTS is None else jnp.zeros_like(bias_NTS)
    blocks = list(_blocks(q.shape[3], k.shape[2], options, offset is not None))
    q, segments, offset = _tied(q, segments, k.shape[2], offset)
    for block in blocks:
        rows, keys = slice(block.start, block.stop), slice(block.first, block.last)
        own, others, bias = _cut(block, segments, bias_NTS)
        some_k, some_v = k[:, :, keys], v[:, :, keys]
        base = block.start - block.first + (0 if offset is None else offset)

        def piece(xs, k=some_k, v=some_v, others=others):
            q, d_out, shared, log_sum, own, bias, base = xs
            ids = None if own is None else (own, others)
            return _gradients(q, k, v, ids, bias, d_out, shared, log_sum, options, base)

        mine = tuple(x[:, :, :, rows] for x in (q, d_out, shared, log_sum))
        pieces = _pieces(block.stop - block.start, some_k.shape[2], q.shape[3])
        if pieces == 1:
            d_q, d_keys, d_part = piece((*mine, own, bias, base))
        else:
            each = base + jnp.arange(pieces) * ((block.stop - block.start) // pieces)
            xs = (*(_split(x, pieces, 3) for x in mine), _split(own, pieces, 1), _split(bias, pieces, 1), each)

            def add(total, xs, piece=piece):
                d_q, d_keys, d_part = piece(xs)
                return jax.tree.map(jnp.add, total, d_keys), (d_q, d_part)

            zeros = (jnp.zeros_like(some_k, jnp.float32), jnp.zeros_like(some_v, jnp.float32))
            d_keys, (d_q, d_part) = jax.lax.scan(add, zeros, xs)
            d_q, d_part = _join(d_q, 3), d_part if d_part is None else _join(d_part, 1)
        d_qs.append(d_q)
        around = ((0, 0), (0, 0), (block.first, k.shape[2] - block.last), (0, 0))
        d_k, d_v = d_k + jnp.pad(d_keys[0], around), d_v + jnp.pad(d_keys[1], around)
        if d_bias is not None:
            outside = ((0, 0), (block.start, q.shape[3] - block.stop), (block.first, k.shape[2] - block.last))
            d_bias += jnp.pad(jnp.asarray(d_part), outside)
    return jnp.concatenate(d_qs, axis=3), d_k, d_v, d_bias


def _gradients(q, k, v, segments, bias, d_out, shared, log_sum, options: Options, base: Any) -> tuple[Any, Any, Any]:
    """What a few queries add: d_q, (d_k, d_v), and the bias's own gradient or None."""
    scores, mask, capped = _scores(q, k, segments, bias, options, base)
    weights = jnp.exp(scores - log_sum)
    weights = weights if mask is None else jnp.where(mask, weights, 0.0)  # of a row that sees nothing, too
    flat_out = d_out.reshape(*d_out.shape[:2], -1, d_out.shape[-1])
    d_weights = jnp.einsum("BKtH,BKsH->BKts", flat_out, v, preferred_element_type=jnp.float32).reshape(weights.shape)
    d_scores = weights * (d_weights - shared)
    if capped is not None:
        d_scores *= 1.0 - jnp.square(capped)
    d_bias = None if bias is None else jnp.sum(d_scores, axis=0).reshape(-1, *d_scores.shape[3:])
    flat = d_scores.reshape(*d_scores.shape[:2], -1, d_scores.shape[-1]).astype(q.dtype)
    flat_weights, flat_q = weights.reshape(flat.shape).astype(q.dtype), q.reshape(*q.shape[:2], -1, q.shape[-1])
    d_q = contract("BKts,BKsH->BKtH", flat, k) * options.scale
    d_k, d_v = contract("BKts,BKtH->BKsH", flat, flat_q), contract("BKts,BKtH->BKsH", flat_weights, flat_out)
    return d_q.reshape(d_out.shape), (d_k, d_v), d_bias


blockwise_attention.defvjp(_forward, _backward)
