"""What a training step must send between devices at least, by formula.

| axis | what | in a step |
|---|---|---|
| fsdp | layers' kernels gathered | forward, and again backward, since what was gathered is not kept |
| fsdp | the head gathered | once: the loss makes its gradient while the logits are at hand |
| fsdp | gradients scattered | once a micro-batch |
| fsdp | rows of the embedding exchanged, never its table | forward and backward |
| data | each device's shard of the gradients summed | once (beside a pipeline: a micro-batch) |
| expert, context, stage | the same, where they have the same ones | once a micro-batch |
| tensor | the stream gathered before, scattered after sub-layers | forward, its gradient backward, what remat repeats |
| tensor | rows of the embedding, the stream before the head, the loss's sums | forward and backward |
| context | keys and values round the ring, or positions exchanged for heads | forward, backward, and again with remat |
| expert | tokens to their experts and back | the same |
| stage | the stream handed on, a micro-batch at a time | forward and backward |
| fsdp, tensor | with Muon, pieces of matrices for whole ones and back, in float32 | in the update |
| all | gradients of what every device has whole (norms, biases) summed | as over that axis |

Over `fsdp` and the axes beside it a micro-batch's gradients are summed before the next begins: whole, they would take
of each device's memory what `fsdp` is there to save. Over `data` devices have the same shards, which wait.

Rajbhandari et al. 2020, section 7.2.2 (fsdp), Korthikanti et al. 2022, section 4.2.2 (tensor). Kernels and activations
travel in the compute dtype, kernels of float8 linear layers in that, gradients of vectors and of the ring's keys in
float32. Scalars and the ring's zig-zag are left out, and that a pipeline gathers its layers over fsdp at every tick.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax

from lmkit.config.arithmetic.mesh import AXES, batch_shards
from lmkit.config.experiment import Experiment
from lmkit.config.sections.families import EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import ContextAttention, Remat, TransformerConfig
from lmkit.config.sections.optim import Optimizer, ParamKind
from lmkit.core.state import Blueprint
from lmkit.cost.flops import is_head
from lmkit.nn.moe import capacity_of
from lmkit.nn.param import ParamSpec, compute_dtype, is_float8
from lmkit.nn.tree import flat
from lmkit.optim.muon import exchanges, pools
from lmkit.parallel.rules import DATA, sums_late

_F32 = 4


class Least(NamedTuple):
    """One thing that must be sent."""

    axes: tuple[str, ...]
    kind: str  # as in parallel.collectives
    sent_bytes: float  # by a device in a step
    why: str
    after: bool = False  # the backward pass: no product is left to run beside it


def least_traffic(experiment: Experiment, blueprint: Blueprint) -> list[Least]:
    """All that must be sent, on the blueprint's mesh."""
    with jax.set_mesh(blueprint.mesh):
        itemsize = compute_dtype(next(iter(experiment.model.towers().values())).dtype).itemsize
    return traffic_of(experiment, blueprint, itemsize)


def traffic_of(experiment: Experiment, blueprint: Blueprint, itemsize: int) -> list[Least]:
    """The same where a number of the compute dtype takes `itemsize` bytes; the mesh may have no devices."""
    sizes = blueprint.mesh.shape
    shapes, specs = flat(blueprint.param_shapes), flat(blueprint.specs)
    rows = [
        row
        for path, spec in specs.items()
        for row in _of_parameter(experiment, sizes, path, spec, shapes[path], path in blueprint.trainable, itemsize)
    ]
    rows += _of_update(experiment, blueprint)
    heads = any(is_head(experiment.model, path) for path in specs)
    for part in experiment.model.towers().values():
        for more in (_of_stream, _of_context, _of_experts, _of_stages):
            rows += more(experiment, part, sizes, itemsize)
        rows += _of_vocabulary(experiment, part, sizes, itemsize, heads)
    return [row for row in rows if row.sent_bytes]


def _of_parameter(
    experiment: Experiment, sizes: Mapping[str, int], path: str, spec: ParamSpec, leaf: jax.ShapeDtypeStruct,
    trained: bool, itemsize: int,
) -> Iterator[Least]:  # fmt: skip
    """Gathers of a parameter, and what its gradient needs."""
    sharding = leaf.sharding
    assert sharding is not None
    local = math.prod(sharding.shard_shape(leaf.shape))
    split = jax.tree.leaves(tuple(sharding.spec))  # pyright: ignore[reportAttributeAccessIssue]
    fsdp = sizes.get("fsdp", 1)
    others = tuple(axis for axis in AXES if sizes.get(axis, 1) > 1 and axis not in split)
    micro, looked_up = experiment.train.accumulate_steps, spec.kind is ParamKind.embedding
    if spec.kind is ParamKind.vector:
        if trained:
            yield from _summed(sizes, others, micro, local * _F32, local * _F32, "gradients of norms and biases")
        return
    others = tuple(axis for axis in others if axis not in ("fsdp", "tensor"))
    if trained:
        size = _F32 if looked_up and not is_head(experiment.model, path) else itemsize
        last = _F32 if spec.exact else itemsize
        yield from _summed(sizes, others, micro, local * size, local * last, "gradients")
    if "fsdp" not in split or (looked_up and not is_head(experiment.model, path)):
        return
    what = "layers" if spec.in_stack else "head and ends"
    one = local * (fsdp - 1) * micro
    float8 = any(is_float8(part, spec) for part in experiment.model.towers().values())
    gathered = one * (1 if float8 else itemsize) * _passes(experiment, spec)
    yield Least(("fsdp",), "all-gather", gathered, f"{what}: parameters")
    if trained:
        yield Least(("fsdp",), "reduce-scatter", one * itemsize, f"{what}: gradients")


def _summed(
    sizes: Mapping[str, int], axes: tuple[str, ...], micro: int, size: float, last: float, why: str
) -> Iterator[Least]:
    """All-reduces over these axes: of `size` bytes in each micro-batch, or over data of `last` after all of them."""
    late = sums_late(sizes, micro)
    for group, times, one, after in (
        (tuple(axis for axis in axes if not (late and axis == DATA)), micro, size, False),
        (tuple(axis for axis in axes if late and axis == DATA), 1, last, True),
    ):
        number = math.prod(sizes[axis] for axis in group)
        if number > 1:
            yield Least(group, "all-reduce", 2 * times * one * (number - 1) / number, why, after)


def _passes(experiment: Experiment, spec: ParamSpec) -> int:
    """How often a parameter is gathered: what an unrolled layer without remat gathered can still be there backward."""
    again = any(part.remat is not Remat.none or part.scan_layers for part in experiment.model.towers().values())
    return 2 if again and spec.in_stack else 1


def _of_update(experiment: Experiment, blueprint: Blueprint) -> Iterator[Least]:
    """Muon's matrices, brought together and taken apart again; see optim/muon.py."""
    if experiment.optim.kind is not Optimizer.muon:
        return
    sizes, specs = blueprint.mesh.shape, flat(blueprint.specs)
    for pool in pools({path: spec for path, spec in specs.items() if path in blueprint.trainable}, sizes):
        steps = exchanges(pool, sizes)
        one = pool.rows * pool.columns * _F32 / math.prod(step.size for step in steps)  # a piece, which grows
        for step in steps:
            sent = step.count * one * (step.size - 1)
            if step.alone:
                yield Least((step.axis,), "all-gather", sent, "Muon: matrices put together", after=True)
            else:
                why = "Muon: matrices dealt out and back"
                yield Least((step.axis,), "all-to-all", 2 * sent / step.size, why, after=True)
            one *= step.size


def stack_lengths(experiment: Experiment, part: TransformerConfig) -> list[tuple[int, int, int]]:
    """(length, layers, sub-layers of a layer) of each stack."""
    if isinstance(part, ViTConfig):
        return [(part.num_positions, part.num_layers, 2)]
    if isinstance(part, EncDecConfig):
        return [
            (experiment.data.seq_len, part.num_layers, 2),
            (experiment.data.target_size, part.decoder_layers, 3),
        ]
    return [(experiment.data.seq_len, part.num_layers, 2)]


def _rows(experiment: Experiment, sizes: Mapping[str, int]) -> float:
    """Rows of the batch on a device."""
    return experiment.train.batch_size / batch_shards(sizes)


def _of_stream(
    experiment: Experiment, part: TransformerConfig, sizes: Mapping[str, int], itemsize: int
) -> Iterator[Least]:
    """What the layers of a transformer send over tensor."""
    tensor, context = sizes.get("tensor", 1), sizes.get("context", 1)
    for length, layers, joins in stack_lengths(experiment, part):
        one = _rows(experiment, sizes) * length / context * part.embed_dim * itemsize * (tensor - 1) / tensor
        # The last sub-layer's result is not needed again; with names it is all kept.
        gathers, scatters = {Remat.none: (0, 0), Remat.full: (joins, joins - 1)}.get(part.remat, (joins, 0))
        if length % (tensor * context):  # the stream stays whole: see rules.residual_dims
            yield Least(("tensor",), "all-reduce", 2 * one * layers * (2 * joins + scatters), "stream")
            continue
        yield Least(("tensor",), "all-gather", one * layers * (2 * joins + gathers), "stream")
        yield Least(("tensor",), "reduce-scatter", one * layers * (2 * joins + scatters), "stream")


def _of_context(
    experiment: Experiment, part: TransformerConfig, sizes: Mapping[str, int], itemsize: int
) -> Iterator[Least]:
    """Attention over sequences that are split."""
    if (context := sizes.get("context", 1)) == 1:
        return
    again = 2 + (part.remat is not Remat.none)
    for length, layers, joins in stack_lengths(experiment, part):
        share = _rows(experiment, sizes) * length / context * part.head_size / sizes.get("tensor", 1)
        keys, heads = 2 * share * part.kv_heads, share * part.num_heads
        for layer in range(layers):
            if part.context_attention is ContextAttention.all_to_all:
                moved = (2 * heads + keys) * itemsize * again * (joins - 1) * (context - 1) / context
                yield Least(("context",), "all-to-all", moved, "attention: positions for heads")
                continue
            window = part.window_of(layer) if isinstance(part, GPTConfig) else 0
            turns = min(context - 1, -(-(window - 1) * context // length)) if window else context - 1
            moved = turns * keys * (itemsize * again + _F32) * (joins - 1)
            yield Least(("context",), "collective-permute", moved, "attention: keys and values")


def _of_experts(
    experiment: Experiment, part: TransformerConfig, sizes: Mapping[str, int], itemsize: int
) -> Iterator[Least]:
    """Tokens to the experts of other devices and back."""
    if (expert := sizes.get("expert", 1)) == 1 or not part.num_experts:
        return
    again = 2 + (part.remat is Remat.full)
    for length, layers, _ in stack_lengths(experiment, part):
        vectors = layers * _rows(experiment, sizes) / sizes.get("context", 1) * part.embed_dim * itemsize * again
        if slots := capacity_of(part, length) * part.num_experts:
            moved = 2 * vectors * slots * (expert - 1) / expert
            yield Least(("expert",), "all-to-all", moved, "experts: slots there and back")
            continue
        yield Least(("expert",), "all-gather", vectors * length * (expert - 1), "experts: tokens there")
        yield Least(("expert",), "reduce-scatter", vectors * length * (expert - 1), "experts: and back")


def _of_stages(
    experiment: Experiment, part: TransformerConfig, sizes: Mapping[str, int], itemsize: int
) -> Iterator[Least]:
    """Every row's stream goes through all stages, once a round."""
    if (stages := sizes.get("stage", 1)) == 1:
        return
    for length, layers, _ in stack_lengths(experiment, part):
        if layers % stages == 0:
            one = _rows(experiment, sizes) * length / sizes.get("context", 1) * part.embed_dim * itemsize
            one /= sizes.get("tensor", 1)
            yield Least(("stage",), "collective-permute", 2 * part.rounds * stages * one, "pipeline: the stream")


def _of_vocabulary(
    experiment: Experiment, part: TransformerConfig, sizes: Mapping[str, int], itemsize: int, heads: bool
) -> Iterator[Least]:
    """The ends of a model with a vocabulary: the look-up, the stream before the head, the sums over the vocabulary."""
    if not part.vocab_size:
        return
    fsdp, tensor = sizes.get("fsdp", 1), sizes.get("tensor", 1)
    rows = _rows(experiment, sizes) / sizes.get("context", 1)
    tokens = rows * sum(length for length, *_ in stack_lengths(experiment, part))
    stream, others = tokens * part.embed_dim * itemsize, (tensor - 1) / tensor
    yield Least(("fsdp",), "all-gather", 4 * tokens * (fsdp - 1), "embedding: ids")
    yield Least(("fsdp",), "all-to-all", 2 * stream / tensor * (fsdp - 1) / fsdp, "embedding: columns of its rows")
    yield Least(("tensor",), "reduce-scatter", stream * others, "embedding: its rows")
    yield Least(("tensor",), "all-gather", stream * others, "embedding: their gradients")
    if heads:
        predicted = rows * stack_lengths(experiment, part)[-1][0]
        stream = predicted * part.embed_dim * others
        yield Least(("tensor",), "all-gather", stream * itemsize, "head: the stream")
        yield Least(("tensor",), "reduce-scatter", stream * _F32, "head: its gradient, in float32")
        yield Least(("tensor",), "all-reduce", 2 * 3 * predicted * _F32 * others, "cross-entropy's sums")
