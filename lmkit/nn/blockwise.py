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

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a row that sees nothing gives 0, not NaN
_MAX_BLOCKS, _MIN_BLOCK = 8, 128  # smaller ones save little and compile longer
_MAX_SCORES = 2**22  # of a head, beyond which queries that see everything are cut, too
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
    cut = options.causal or options.window or num_queries * num_keys > _MAX_SCORES
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


def _mask(block: _Block, segments: Segments | None, options: Options, offset: Any) -> jax.Array | None:
    """bool [B or 1, 1, 1, queries, keys], True where a query sees a key; None where all see all."""
    mask = None
    before, after = reach(options)
    if before is not None or after is not None:
        distance = jnp.arange(block.start, block.stop)[:, None] - jnp.arange(block.first, block.last)[None, :]
        distance = distance if offset is None else distance + offset
        mask = jnp.ones(distance.shape, bool) if after is None else distance >= -after
        mask = (mask if before is None else mask & (distance <= before))[None, None, None]
    if segments is not None:
        own, others = segments[0][:, block.start : block.stop, None], segments[1][:, None, block.first : block.last]
        same = (own == others)[:, None, None]
        mask = same if mask is None else mask & same
    return mask


def _scores(
    block: _Block, q_BKGTH, k_BKSH, segments, bias_NTS, options: Options, offset: Any
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Masked float32 scores [B, K, G, t, s] of a block, the mask, and tanh(scores / softcap) where there is one."""
    q = q_BKGTH[:, :, :, block.start : block.stop]
    flat = q.reshape(*q.shape[:2], -1, q.shape[-1])  # all query heads of a key head in one product
    k = k_BKSH[:, :, block.first : block.last]
    scores = jnp.einsum("BKtH,BKsH->BKts", flat, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(*q.shape[:4], k.shape[2])
    capped = None
    if options.softcap:
        capped = jnp.tanh(scores / options.softcap)
        scores = options.softcap * capped
    if bias_NTS is not None:
        heads = bias_NTS.reshape(k.shape[1], -1, *bias_NTS.shape[1:])
        scores += heads[:, :, block.start : block.stop, block.first : block.last]
    mask = _mask(block, segments, options, offset)
    return (scores if mask is None else jnp.where(mask, scores, _MASKED)), mask, capped


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
    out = out.astype(q.dtype)
    return ungroup(out), (q, k, v, segments, bias_NTS, out, log_sum)


def forward(q_BKGTH, k_BKSH, v_BKSH, segments, bias_NTS, options: Options, offset: Any = None):
    """Grouped and scaled queries to float32 (attention [B, K, G, T, H], log of the weights' sum [B, K, G, T, 1]).

    offset: how far the first query is behind the first key, where that is not 0: an int32 scalar.
    """
    outs, log_sums = [], []
    for block in _blocks(q_BKGTH.shape[3], k_BKSH.shape[2], options, offset is not None):
        scores, mask, _ = _scores(block, q_BKGTH, k_BKSH, segments, bias_NTS, options, offset)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        flat = weights.reshape(*weights.shape[:2], -1, weights.shape[-1]).astype(v_BKSH.dtype)
        values = v_BKSH[:, :, block.first : block.last]
        out = jnp.einsum("BKts,BKsH->BKtH", flat, values, preferred_element_type=jnp.float32)
        out = out.reshape(*weights.shape[:4], -1) / total
        outs.append(out if mask is None else jnp.where(top > _MASKED, out, 0.0))
        log_sums.append(top + jnp.log(total))
    return jnp.concatenate(outs, axis=3), jnp.concatenate(log_sums, axis=3)


def _backward(options: Options, saved, d_out_BTNH):
    q, k, v, segments, bias_NTS, out, log_sum = saved
    d_out = group(d_out_BTNH, k.shape[1], 1.0)
    d_q, d_k, d_v, d_bias = backward(q, k, v, segments, bias_NTS, d_out, shared_part(d_out, out), log_sum, options)
    back = [x.astype(q.dtype).transpose(0, 2, 1, 3) for x in (d_k, d_v)]
    return ungroup(d_q.astype(q.dtype)), *back, None, d_bias


def shared_part(d_out: jax.Array, out: jax.Array) -> jax.Array:
    """float32 [B, K, G, T, 1]: the sum over keys of weight * d_weight (FlashAttention, equation 4)."""
    return jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)


def backward(q, k, v, segments, bias_NTS, d_out, shared, log_sum, options: Options, offset: Any = None):
    """float32 gradients of q (before it was scaled), k, v and the bias; arguments as in `forward`."""
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_qs, d_k, d_v = [], jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    d_bias = None if bias_NTS is None else jnp.zeros_like(bias_NTS)
    for block in _blocks(q.shape[3], k.shape[2], options, offset is not None):
        rows, keys = slice(block.start, block.stop), slice(block.first, block.last)
        scores, mask, capped = _scores(block, q, k, segments, bias_NTS, options, offset)
        weights = jnp.exp(scores - log_sum[:, :, :, rows])
        weights = weights if mask is None else jnp.where(mask, weights, 0.0)  # of a row that sees nothing, too
        d_rows = d_out[:, :, :, rows]
        flat_rows = d_rows.reshape(*d_rows.shape[:2], -1, d_rows.shape[-1])
        d_weights = product("BKtH,BKsH->BKts", flat_rows, v[:, :, keys]).reshape(weights.shape)
        d_scores = weights * (d_weights - shared[:, :, :, rows])
        if capped is not None:
            d_scores *= 1.0 - jnp.square(capped)
        if d_bias is not None:
            outside = ((0, 0), (block.start, q.shape[3] - block.stop), (block.first, k.shape[2] - block.last))
            d_bias += jnp.pad(jnp.sum(d_scores, axis=0).reshape(-1, *d_scores.shape[3:]), outside)
        flat = d_scores.reshape(*d_scores.shape[:2], -1, d_scores.shape[-1]).astype(q.dtype)
        flat_weights = weights.reshape(flat.shape).astype(q.dtype)
        own = q[:, :, :, rows]
        own = own.reshape(*own.shape[:2], -1, own.shape[-1])
        d_q = product("BKts,BKsH->BKtH", flat, k[:, :, keys]) * options.scale
        d_qs.append(d_q.reshape(d_rows.shape))
        around = ((0, 0), (0, 0), (block.first, k.shape[2] - block.last), (0, 0))
        d_k += jnp.pad(product("BKts,BKtH->BKsH", flat, own), around)
        d_v += jnp.pad(product("BKts,BKtH->BKsH", flat_weights, flat_rows), around)
    return jnp.concatenate(d_qs, axis=3), d_k, d_v, d_bias


blockwise_attention.defvjp(_forward, _backward)
