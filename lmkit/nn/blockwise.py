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

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a row that sees nothing gives a mean, not NaN
_MAX_BLOCKS, _MIN_BLOCK = 8, 128  # smaller ones save little and compile longer
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


def _blocks(num_queries: int, num_keys: int, options: Options) -> Iterator[_Block]:
    bounded = options.causal or options.window
    size = max(-(-num_queries // _MAX_BLOCKS), _MIN_BLOCK) if bounded else num_queries
    before, after = reach(options)
    for start in range(0, num_queries, size):
        stop = min(start + size, num_queries)
        first = 0 if before is None else max(start - before, 0)
        yield _Block(start, stop, first, num_keys if after is None else min(stop + after, num_keys))


def reach(options: Any) -> tuple[int | None, int | None]:
    """How many positions before and after its own one sees; None for all."""
    if options.causal:
        return (options.window - 1 if options.window else None), 0
    return (options.window // 2,) * 2 if options.window else (None, None)


def _mask(block: _Block, segments: Segments | None, options: Options) -> jax.Array | None:
    """bool [B or 1, 1, 1, queries, keys], True where a query sees a key; None where all see all."""
    mask = None
    before, after = reach(options)
    if before is not None or after is not None:
        distance = jnp.arange(block.start, block.stop)[:, None] - jnp.arange(block.first, block.last)[None, :]
        mask = jnp.ones(distance.shape, bool) if after is None else distance >= -after
        mask = (mask if before is None else mask & (distance <= before))[None, None, None]
    if segments is not None:
        own, others = segments[0][:, block.start : block.stop, None], segments[1][:, None, block.first : block.last]
        same = (own == others)[:, None, None]
        mask = same if mask is None else mask & same
    return mask


def _scores(
    block: _Block, q_BKGTH, k_BKSH, segments, bias_NTS, options: Options
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
    mask = _mask(block, segments, options)
    return (scores if mask is None else jnp.where(mask, scores, _MASKED)), mask, capped


def _group(q_BTNH: jax.Array, num_keys: int, scale: float) -> jax.Array:
    batch, seq, heads, size = q_BTNH.shape
    return (q_BTNH * scale).reshape(batch, seq, num_keys, heads // num_keys, size).transpose(0, 2, 3, 1, 4)


def _ungroup(x_BKGTH: jax.Array) -> jax.Array:
    batch, keys, groups, seq, size = x_BKGTH.shape
    return x_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, seq, keys * groups, size)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def blockwise_attention(q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS, options: Options) -> jax.Array:
    """softmax(scale q k^T + bias + mask) v; shapes and options as in `attend`."""
    return _forward(q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS, options)[0]


def _forward(q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS, options: Options):
    q = _group(q_BTNH, k_BSKH.shape[2], options.scale)
    k, v = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    outs, log_sums = [], []
    for block in _blocks(q.shape[3], k.shape[2], options):
        scores, _, _ = _scores(block, q, k, segments, bias_NTS, options)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        flat = weights.reshape(*weights.shape[:2], -1, weights.shape[-1]).astype(v.dtype)
        out = jnp.einsum("BKts,BKsH->BKtH", flat, v[:, :, block.first : block.last], preferred_element_type=jnp.float32)
        outs.append((out.reshape(*weights.shape[:4], -1) / total).astype(q.dtype))
        log_sums.append(top + jnp.log(total))
    out, log_sum = jnp.concatenate(outs, axis=3), jnp.concatenate(log_sums, axis=3)
    return _ungroup(out), (q, k, v, segments, bias_NTS, out, log_sum)


def _backward(options: Options, saved, d_out_BTNH):
    q, k, v, segments, bias_NTS, out, log_sum = saved
    d_out = _group(d_out_BTNH, k.shape[1], 1.0)
    # sum over keys of weight * d_weight (FlashAttention, equation 4)
    shared = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_qs, d_k, d_v = [], jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    d_bias = None if bias_NTS is None else jnp.zeros_like(bias_NTS)
    for block in _blocks(q.shape[3], k.shape[2], options):
        rows, keys = slice(block.start, block.stop), slice(block.first, block.last)
        scores, mask, capped = _scores(block, q, k, segments, bias_NTS, options)
        weights = jnp.exp(scores - log_sum[:, :, :, rows])
        d_rows = d_out[:, :, :, rows]
        flat_rows = d_rows.reshape(*d_rows.shape[:2], -1, d_rows.shape[-1])
        d_weights = product("BKtH,BKsH->BKts", flat_rows, v[:, :, keys]).reshape(weights.shape)
        d_scores = weights * (d_weights - shared[:, :, :, rows])
        if capped is not None:
            d_scores *= 1.0 - jnp.square(capped)
        if mask is not None:  # a row that sees nothing has weights, but they move nothing
            d_scores = jnp.where(mask, d_scores, 0.0)
        if d_bias is not None:
            outside = ((0, 0), (block.start, q.shape[3] - block.stop), (block.first, k.shape[2] - block.last))
            d_bias += jnp.pad(jnp.sum(d_scores, axis=0).reshape(-1, *d_scores.shape[3:]), outside)
        flat = d_scores.reshape(*d_scores.shape[:2], -1, d_scores.shape[-1]).astype(q.dtype)
        flat_weights = weights.reshape(flat.shape).astype(q.dtype)
        own = q[:, :, :, rows]
        own = own.reshape(*own.shape[:2], -1, own.shape[-1])
        d_q = product("BKts,BKsH->BKtH", flat, k[:, :, keys]) * options.scale
        d_qs.append(d_q.reshape(d_rows.shape).astype(q.dtype))
        around = ((0, 0), (0, 0), (block.first, k.shape[2] - block.last), (0, 0))
        d_k += jnp.pad(product("BKts,BKtH->BKsH", flat, own), around)
        d_v += jnp.pad(product("BKts,BKtH->BKsH", flat_weights, flat_rows), around)
    back = [x.astype(q.dtype).transpose(0, 2, 1, 3) for x in (d_k, d_v)]
    return _ungroup(jnp.concatenate(d_qs, axis=3)), *back, None, d_bias


blockwise_attention.defvjp(_forward, _backward)
