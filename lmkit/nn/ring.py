"""Attention over a sequence that is split over the mesh axis `context`.

Ring (Liu et al. 2023, section 3): queries stay, keys and values go round, each device adds what it gets to its running
softmax. Causal sequences are dealt out in zig-zag first: of 2n chunks device i takes the i-th and the i-th from the
end, so that at every turn each has half of a full product to do. That costs one exchange of queries, keys, values and
results, of T / n each, against work of T^2 / n; in return the model never sees another order than its own, and
dropout, positions and blocks of one's own need not know.

All-to-all (Jacobs et al. 2023, DeepSpeed Ulysses, section 3): heads are dealt out instead of inputs, each device runs
any kernel on whole sequences; it needs at least as many heads as devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lmkit.nn.blockwise import Options, Segments, backward, forward, group, reach, shared_part, ungroup
from lmkit.parallel.rules import BATCH_AXES, current_spec, on_each_device, reshard, split_axes

AXIS = "context"
_Q, _K, _BIAS = ("batch", "seq", "heads", "head"), ("batch", "seq", "kv_heads", "head"), ("heads", "seq", None)
_SAVED_Q, _SAVED_K = ("batch", "kv_heads", None, "seq", None), ("batch", "kv_heads", "seq", None)


class _Plan(NamedTuple):
    """What does not change while it runs."""

    options: Options
    size: int  # devices of the ring
    zigzag: bool
    turns: int  # how often keys move on: to all, or as far as a causal window reaches
    rows: tuple[str, ...]  # mesh axes that split the batch


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def ring_attention(q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS, options: Options) -> jax.Array:
    """softmax(scale q k^T + bias + mask) v, sequences split over `context`; shapes and options as in `attend`."""
    return _ring_forward(q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS, options)[0]


def _plan(options: Options, queries: int, bias: Any) -> _Plan:
    axes = split_axes()
    size = axes[AXIS]
    window = options.window if options.causal else 0
    zigzag = options.causal and not window and bias is None and queries % (2 * size) == 0
    turns = min(size - 1, -(-(window - 1) // (queries // size))) if window else size - 1
    return _Plan(options, size, zigzag, turns, tuple(axis for axis in BATCH_AXES if axis in axes))


def _specs(*dims: Any) -> Any:
    return tuple(None if one is None else current_spec(one) or PartitionSpec() for one in dims)


def _dims(segments: Segments | None, bias: Any) -> tuple[Any, Any]:
    """Specs of the segments and of the bias."""
    rows = None if segments is None else _specs(("batch", "seq"), ("batch", "seq"))
    return rows, None if bias is None else _specs(_BIAS)[0]


def _ring_forward(q, k, v, segments, bias, options: Options):
    plan = _plan(options, q.shape[1], bias)
    local = partial(_local_forward, plan)
    specs = (*_specs(("seq",), _Q, _K, _K), *_dims(segments, bias))
    out, saved = on_each_device(
        local, specs, (_specs(_Q)[0], _specs(_SAVED_Q, _SAVED_K, _SAVED_K, _SAVED_Q, _SAVED_Q[:4])), check=False
    )(_numbers(plan), q, k, v, segments, bias)
    return out, (*saved, segments, bias)


def _ring_backward(options: Options, saved, d_out):
    q, k, v, out, log_sum, segments, bias = saved
    plan = _plan(options, q.shape[3], bias)
    local = partial(_local_backward, plan)
    rows, table = _dims(segments, bias)
    specs = (*_specs(("seq",), _SAVED_Q, _SAVED_K, _SAVED_K, _SAVED_Q, _SAVED_Q[:4]), rows, table, *_specs(_Q))
    grads = on_each_device(local, specs, (*_specs(_Q, _K, _K), table), check=False)(
        _numbers(plan), q, k, v, out, log_sum, segments, bias, d_out
    )
    return *grads[:3], None, grads[3]


ring_attention.defvjp(_ring_forward, _ring_backward)


def _numbers(plan: _Plan) -> jax.Array:
    """Each device's number in the ring, for itself.

    lax.axis_index would say it, too; but what depends on nothing is moved out of the loops of a pipeline, and a
    shard_map without operands does not lower there (jax 0.10.2).
    """
    return reshard(jnp.arange(plan.size), ("seq",))


def _local_forward(plan: _Plan, number, q_BtNH, k_BsKH, v_BsKH, segments, bias_NtS):
    """One device's queries: their result, and what the backward pass needs, in the order of the ring."""
    me = number[0]
    deal = partial(_deal, plan, me)
    q = group(deal(q_BtNH), k_BsKH.shape[2], plan.options.scale)
    k, v = (deal(x).transpose(0, 2, 1, 3) for x in (k_BsKH, v_BsKH))
    own, others = (None, None) if segments is None else (deal(x) for x in segments)
    state = forward(q, k, v, _pair(own, others), _columns(bias_NtS, k.shape[2], me), plan.options)

    def add(state, moving, offset, rows: slice, keys: slice, options: Options, bias):
        k, v, others = moving
        out, log_sum = state
        part = forward(
            q[:, :, :, rows], k[:, :, keys], v[:, :, keys], _pair(own, others, rows, keys), bias, options, offset
        )
        now = jnp.logaddexp(log_sum[:, :, :, rows], part[1])
        mixed = out[:, :, :, rows] * jnp.exp(log_sum[:, :, :, rows] - now) + part[0] * jnp.exp(part[1] - now)
        return out.at[:, :, :, rows].set(mixed), log_sum.at[:, :, :, rows].set(now)

    def use(state, moving, turn):
        return _each_turn(plan, me, q.shape[3], add, state, moving, turn, bias_NtS)

    moving = (k, v, others)
    if plan.turns:
        moving = _move(plan, moving, 1)

        def step(carry, turn):
            state, moving = carry
            ahead = _move(plan, moving, 1)  # while this turn's product runs
            return (use(state, moving, turn), ahead), None

        if plan.turns > 1:
            (state, moving), _ = lax.scan(step, (state, moving), jnp.arange(1, plan.turns))
        state = use(state, moving, plan.turns)
    out, log_sum = state
    out = out.astype(q.dtype)
    return deal(ungroup(out), back=True), (q, k, v, out, log_sum[..., 0])


def _local_backward(plan: _Plan, number, q, k, v, out, log_sum, segments, bias_NtS, d_out_BtNH):
    """One device's gradients: those of the keys go round with their keys, and then home."""
    me = number[0]
    deal = partial(_deal, plan, me)
    d_out, log_sum = group(deal(d_out_BtNH), k.shape[1], 1.0), log_sum[..., None]
    shared = shared_part(d_out, out)
    own, others = (None, None) if segments is None else (deal(x) for x in segments)
    d_q, *d_home, d_part = backward(
        q, k, v, _pair(own, others), _columns(bias_NtS, k.shape[2], me), d_out, shared, log_sum, plan.options
    )
    d_bias = None if bias_NtS is None else _put_columns(jnp.zeros_like(bias_NtS), d_part, me)

    def add(state, moving, offset, rows: slice, keys: slice, options: Options, bias):
        d_q, d_k, d_v, d_bias = state
        k, v, others = moving
        part = backward(
            q[:, :, :, rows], k[:, :, keys], v[:, :, keys], _pair(own, others, rows, keys), bias,
            d_out[:, :, :, rows], shared[:, :, :, rows], log_sum[:, :, :, rows], options, offset,
        )  # fmt: skip
        d_k, d_v = (x.at[:, :, keys].add(y) for x, y in ((d_k, part[1]), (d_v, part[2])))
        return d_q.at[:, :, :, rows].add(part[0]), d_k, d_v, part[3] if bias is not None else d_bias

    def use(d_q, d_moving, d_bias, moving, turn):
        source = (me - turn) % plan.size
        part = jax.tree.map(jnp.zeros_like, _columns(d_bias, k.shape[2], source))
        state = _each_turn(plan, me, q.shape[3], add, (d_q, *d_moving, part), moving, turn, bias_NtS)
        return state[0], state[1:3], None if d_bias is None else _put_columns(d_bias, state[3], source)

    if plan.turns:
        moving = _move(plan, (k, v, others), 1)
        d_moving = tuple(jnp.zeros_like(x) for x in d_home)

        def step(carry, turn):
            d_q, d_moving, d_bias, moving = carry
            ahead = _move(plan, moving, 1)
            d_q, d_moving, d_bias = use(d_q, d_moving, d_bias, moving, turn)
            return (d_q, _move(plan, d_moving, 1), d_bias, ahead), None

        carry = (d_q, d_moving, d_bias, moving)
        if plan.turns > 1:
            (d_q, d_moving, d_bias, moving), _ = lax.scan(step, carry, jnp.arange(1, plan.turns))
        d_q, d_moving, d_bias = use(d_q, d_moving, d_bias, moving, plan.turns)
        d_home = [x + y for x, y in zip(d_home, _move(plan, d_moving, -plan.turns), strict=True)]
    if d_bias is not None and plan.rows:
        d_bias = lax.psum(d_bias, plan.rows)
    d_k, d_v = (deal(x.astype(q.dtype).transpose(0, 2, 1, 3), back=True) for x in d_home)
    return deal(ungroup(d_q.astype(q.dtype)), back=True), d_k, d_v, d_bias


def _each_turn(plan: _Plan, me: jax.Array, queries: int, add: Callable, state, moving, turn, bias_NtS):
    """`add` for what this device's queries see of the keys that came from `turn` devices before."""
    options, keys = plan.options, moving[0].shape[2]
    source = (me - turn) % plan.size
    everything, half = slice(None), slice(keys // 2)
    plain = options._replace(causal=False, window=0)
    if plan.zigzag:  # from before: the early chunk of theirs, by all; from after: all of theirs, by the late chunk
        late = slice(queries // 2, queries)
        return lax.cond(
            source < me,
            lambda: add(state, moving, None, everything, half, plain, None),
            lambda: add(state, moving, None, late, everything, plain, None),
        )
    bias = _columns(bias_NtS, keys, source)
    before, after = reach(options)
    first = me * queries - source * keys  # how far the first query is behind the first key
    offset = first if options.window else None
    options = options if options.window else plain
    whole = partial(add, state, moving, offset, everything, everything, options, bias)
    if before is None and after is None:
        return whole()
    seen = True if after is None else first + queries > -after
    seen = seen if before is None else seen & (first - keys < before)
    return lax.cond(seen, whole, lambda: state)


def _move(plan: _Plan, tree: Any, steps: int) -> Any:
    """Everything to the device so many inputs on."""
    ring = [(i, (i + steps) % plan.size) for i in range(plan.size)]
    return jax.tree.map(lambda x: lax.ppermute(x, AXIS, ring), tree)


def _pair(own, others, rows: slice = slice(None), keys: slice = slice(None)) -> Segments | None:
    return None if own is None else (own[:, rows], others[:, keys])


def _columns(bias_NtS: jax.Array | None, keys: int, source: Any) -> jax.Array | None:
    """The bias of the keys of a device."""
    return None if bias_NtS is None else lax.dynamic_slice_in_dim(bias_NtS, source * keys, keys, axis=2)


def _put_columns(bias_NtS: jax.Array, part: Any, source: Any) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(bias_NtS, part, source * part.shape[2], axis=2)


def _deal(plan: _Plan, me: jax.Array, x_Bt: jax.Array, *, back: bool = False) -> jax.Array:
    """From the natural order to zig-zag, or back: [B, t, ...], each device's two chunks to where they belong.

    Chunk c of 2n lies on device c // 2, and in zig-zag on device min(c, 2n - 1 - c).
    """
    if not plan.zigzag:
        return x_Bt
    size = plan.size
    routes = [[(i, min(c, 2 * size - 1 - c)) for i in range(size) for c in (2 * i + half,)] for half in (0, 1)]
    first, second = jnp.split(x_Bt, 2, axis=1)
    even = me % 2 == 0  # its early chunk is an even one
    if back:
        evens, odds = jnp.where(even, first, second), jnp.where(even, second, first)
        routes = [[(to, at) for at, to in route] for route in routes]
        return jnp.concatenate([lax.ppermute(x, AXIS, r) for x, r in zip((evens, odds), routes, strict=True)], axis=1)
    evens, odds = (lax.ppermute(x, AXIS, r) for x, r in zip((first, second), routes, strict=True))
    return jnp.concatenate([jnp.where(even, evens, odds), jnp.where(even, odds, evens)], axis=1)


def exchange_heads(local: Callable, q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS) -> jax.Array:
    """local(q, k, v, segments, bias) on whole sequences and a share of the heads on each device of `context`."""
    size = split_axes()[AXIS]

    def on_device(q, k, v, segments, bias):
        if k.shape[2] < size:  # each key head to as many devices as serve it
            k, v = (jnp.repeat(x, size // x.shape[2], axis=2) for x in (k, v))
        q, k, v = (lax.all_to_all(x, AXIS, split_axis=2, concat_axis=1, tiled=True) for x in (q, k, v))
        if segments is not None:
            segments = tuple(lax.all_gather(x, AXIS, axis=1, tiled=True) for x in segments)
        if bias is not None:
            bias = lax.dynamic_slice_in_dim(bias, lax.axis_index(AXIS) * q.shape[2], q.shape[2], axis=0)
        return lax.all_to_all(local(q, k, v, segments, bias), AXIS, split_axis=1, concat_axis=2, tiled=True)

    rows, _ = _dims(segments, None)
    table = None if bias_NTS is None else _specs(("heads", None, None))[0]
    specs = (*_specs(_Q, _K, _K), rows, table)
    return on_each_device(on_device, specs, _specs(_Q)[0], check=False)(q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS)
