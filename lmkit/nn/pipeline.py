"""A stack's layers in stages, one after the other over the mesh axis `stage`, with micro-batches in the pipe.

S stages, M micro-batches, R rounds. With one round (GPipe, Huang et al. 2019, figure 2) each stage has one chunk of
L / S layers; with more (the circular or interleaved schedule, Narayanan et al. 2021, section 2.2) it has R chunks of
L / (R S), chunk c on stage c mod S, and a micro-batch goes R times round. At each tick every stage does one chunk of
one micro-batch and hands the stream to the next stage; R M + S - 1 ticks do it all.

Outside of the pipeline a stage has its share of the rows, as `data` and `fsdp` have.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lmkit.config.arithmetic.pipeline import ROW_AXES, STAGE, choose_microbatches
from lmkit.nn.attention import LayerInputs
from lmkit.parallel.borders import on_each_with_gradient
from lmkit.parallel.rules import on_each_device, split_axes

_WHOLE = ("bias_NTS",)  # the inputs without rows
# (parameters, flags, numbers) of some layers, the inputs of some rows, their stream, the dropout key -> (the stream,
# sums over tokens that each layer hands out [layers, ...])
RunLayers = Callable[[Any, LayerInputs, jax.Array, jax.Array | None], tuple[jax.Array, Any]]


def pipelined(
    run: RunLayers,
    layers: Any,
    x_BTD: jax.Array,
    inputs: LayerInputs,
    key: jax.Array | None,
    *,
    microbatches: int,
    rounds: int,
) -> tuple[jax.Array, Any]:
    """What `run` makes of all layers and rows: the stream [B, T, D], and the sums that layers hand out [L, ...].

    Args:
        layers: (parameters, flags, numbers), each leaf [L, ...]; the parameters lie over `stage`, the rest does not.
        key: of dropout, whose masks depend on the rows' numbers in `inputs`.
        microbatches: 0 for four a stage; where the rows do not divide, the most below that fit.
    """
    axes = split_axes()
    stages, shards = axes[STAGE], math.prod(axes.get(axis, 1) for axis in ROW_AXES)
    microbatches = choose_microbatches(microbatches, x_BTD.shape[0] // shards, stages)
    params, *rest = layers
    own, whole = PartitionSpec(STAGE), PartitionSpec()
    with_rows = _with_rows(inputs)
    body = partial(_stage, run, stages, microbatches, rounds, with_rows)
    specs = (own, whole, own, jax.tree.map(lambda rows: own if rows else whole, with_rows), whole)
    out_specs = (own, PartitionSpec(None, STAGE))
    x_BTD, auxiliary = on_each_with_gradient(STAGE, body, specs, out_specs)(params, rest, x_BTD, inputs, key)
    return x_BTD, jax.tree.map(partial(_join_chunks, stages), auxiliary)


def _stage(run, stages, microbatches, rounds, with_rows, params, rest, x_BTD, inputs, key):
    """One stage: its shares of the parameters [L / S, ...] and of the rows [B / S, T, D]."""
    stage = lax.axis_index(STAGE)
    ticks, chunks = rounds * microbatches + stages - 1, rounds * stages
    params = params if rounds == 1 else jax.tree.map(partial(_deal, stages, rounds), params)
    params = jax.tree.map(lambda p: p.reshape(rounds, -1, *p.shape[1:]), params)
    rest = jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), rest)
    waiting_MbTD = _gather(x_BTD, stages, microbatches)
    inputs = jax.tree.map(lambda x, rows: _gather(x, stages, microbatches) if rows else x, inputs, with_rows)
    any_bTD = lax.stop_gradient(waiting_MbTD[0])

    def chunk_of(lap):
        return jax.tree.map(lambda p: _at(p, lap), params), *jax.tree.map(lambda r: _at(r, lap * stages + stage), rest)

    # Outside of the loop where there is one: what is chosen inside, its backward pass keeps once a tick.
    only = chunk_of(0) if rounds == 1 else None

    def tick(carry, number):
        handed_bTD, waiting_MbTD = carry  # by the stage before; at the first stage, for a round to come
        turn = number - stage
        busy = (turn >= 0) & (turn < rounds * microbatches)
        turn = jnp.where(busy, turn, 0)
        part, lap = turn % microbatches, turn // microbatches
        x_bTD = jnp.where(stage == 0, _at(waiting_MbTD, part), handed_bTD)
        # An idle stage computes, too: collectives among its devices stay in step with the others'. It takes rows
        # that are finite, and nobody takes what it makes of them.
        x_bTD = jnp.where(busy, x_bTD, any_bTD)
        here = jax.tree.map(lambda x, rows: _at(x, part) if rows else x, inputs, with_rows)
        x_bTD, auxiliary = run(only or chunk_of(lap), here, x_bTD, key)
        x_bTD = lax.ppermute(x_bTD, STAGE, [(s, (s + 1) % stages) for s in range(stages)])
        # What the last stage made comes round to the first: for its next round, or to stay.
        turn = number - (stages - 1)
        slot = jnp.maximum(turn, 0) % microbatches
        arrived = jnp.where((stage == 0) & (turn >= 0), x_bTD, _at(waiting_MbTD, slot))
        waiting_MbTD = lax.dynamic_update_index_in_dim(waiting_MbTD, arrived, slot, 0)
        return (x_bTD, waiting_MbTD), (auxiliary, busy & (lap == jnp.arange(rounds)))

    (_, done_MbTD), (auxiliary, laps) = lax.scan(tick, (any_bTD, waiting_MbTD), jnp.arange(ticks))
    x_BTD = _scatter(done_MbTD, stages)
    return x_BTD, jax.tree.map(partial(_sum_ticks, laps), auxiliary)


def _at(x: jax.Array, index: Any) -> jax.Array:
    return lax.dynamic_index_in_dim(x, index, 0, keepdims=False)


def _sum_ticks(laps: jax.Array, auxiliary: jax.Array) -> jax.Array:
    """[ticks, l, ...] of a stage to [R, 1, l, ...]; laps bool [ticks, R]: which round a busy tick belongs to."""
    mask = laps.reshape(*laps.shape, *[1] * (auxiliary.ndim - 1))
    return jnp.sum(jnp.where(mask, auxiliary[:, None], 0), axis=0)[:, None]


def _join_chunks(stages: int, auxiliary: jax.Array) -> jax.Array:
    """[R, S, l, ...], its S over the stages, to [R S l, ...]."""
    auxiliary = jax.sharding.reshard(auxiliary, PartitionSpec(None, None, *jax.typeof(auxiliary).sharding.spec[2:]))
    return auxiliary.reshape(-1, *auxiliary.shape[3:])


# ---- rows -----------------------------------------------------------------------------------------------------------


def _with_rows(inputs: LayerInputs) -> LayerInputs:
    """Whether each array has a row for each of the stream's, in a tree like the inputs."""
    fields = {name: name not in _WHOLE for name in LayerInputs._fields}
    return LayerInputs(*[
        jax.tree.map(lambda x, name=name: fields[name] and not (name.startswith("rope") and x.shape[0] == 1), field)
        for name, field in zip(LayerInputs._fields, inputs, strict=True)
    ])  # fmt: skip


def _gather(x: jax.Array, stages: int, parts: int) -> jax.Array:
    """A stage's rows [B / S, ...] to all stages' micro-batches [M, B / M, ...]; the devices of a stage keep their rows.

    A micro-batch takes its rows from S / gcd(S, M) stages.
    """
    common, spec = math.gcd(stages, parts), jax.typeof(x).sharding.spec
    x = _exchange(jnp.broadcast_to(x, (stages, *x.shape), out_sharding=PartitionSpec(None, *spec)))
    shape = (common, stages // common, x.shape[1] * common // parts, parts // common, *x.shape[2:])
    split, whole = PartitionSpec(None, None, spec[0], None, *spec[1:]), PartitionSpec(None, *spec)
    x = jnp.reshape(x, shape, out_sharding=split).swapaxes(1, 3)
    return jnp.reshape(x, (parts, x.shape[2] * x.shape[3], *x.shape[4:]), out_sharding=whole)


def _scatter(x: jax.Array, stages: int) -> jax.Array:
    """The inverse of `_gather`, of what the first stage holds."""
    parts, spec = x.shape[0], jax.typeof(x).sharding.spec
    common = math.gcd(stages, parts)
    shape = (common, parts // common, x.shape[1] * common // stages, stages // common, *x.shape[2:])
    x = jnp.reshape(x, shape, out_sharding=PartitionSpec(None, None, spec[1], None, *spec[2:])).swapaxes(1, 3)
    return _exchange(jnp.reshape(x, (stages, x.shape[2] * x.shape[3], *x.shape[4:]), out_sharding=spec))[0]


def _exchange(x: jax.Array) -> jax.Array:
    """x[s] goes to stage s, which has [S, ...] then, one of each.

    Each device sends its own part: beside axes that are not Manual the compiler would gather x over them first. All
    that moves is moved so: the sums of psum_scatter, all_gather's transpose, do not lower there (jax 0.10.2).
    """
    spec = jax.typeof(x).sharding.spec
    return on_each_device(lambda x: lax.all_to_all(x, STAGE, 0, 0, tiled=True), (spec,), spec)(x)


# ---- layers ---------------------------------------------------------------------------------------------------------


def _deal(stages: int, rounds: int, x: jax.Array) -> jax.Array:
    """A stage's layers [L / S, ...], R chunks next to each other, to the R chunks that it runs: every S-th.

    An all-to-all in which the stages send each other as many chunks as the busiest pair does.
    """
    chunks = np.arange(stages * rounds)
    source, target = chunks // rounds, chunks % stages
    nth = np.array([np.sum((source[:c] == source[c]) & (target[:c] == target[c])) for c in chunks])
    most = int(nth.max()) + 1
    send, take = np.zeros((stages, stages * most), int), np.zeros((stages, rounds), int)
    send[source, target * most + nth] = chunks % rounds
    take[target, chunks // stages] = source * most + nth
    stage = lax.axis_index(STAGE)
    x = x.reshape(rounds, -1, *x.shape[1:])
    x = jnp.take(x, jnp.asarray(send)[stage], axis=0).reshape(stages, most, *x.shape[1:])
    x = jnp.take(_exchange(x).reshape(stages * most, *x.shape[2:]), jnp.asarray(take)[stage], axis=0)
    return x.reshape(-1, *x.shape[2:])


def one_layer(params: Any, index: jax.Array) -> Any:
    """A layer of parameters [L, ...] that lie over `stage`, on all stages."""

    def local(params: Any, index: jax.Array) -> Any:
        def pick(x: jax.Array) -> jax.Array:
            mine = index // x.shape[0] == lax.axis_index(STAGE)
            return lax.psum(jnp.where(mine, _at(x, index % x.shape[0]), 0), STAGE)

        return jax.tree.map(pick, params)

    whole = PartitionSpec()
    return jax.shard_map(local, axis_names={STAGE}, in_specs=(PartitionSpec(STAGE), whole), out_specs=whole)(
        params, index
    )
