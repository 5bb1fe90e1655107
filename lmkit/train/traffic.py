"""What a training step must send between devices at least, by formula: over data, fsdp and tensor.

| axis | what | in a step |
|---|---|---|
| fsdp | layers' kernels gathered | forward, and again backward, since what was gathered is not kept |
| fsdp | the head gathered | once: the loss makes its gradient while the logits are at hand |
| fsdp | gradients scattered | once |
| fsdp | rows of the embedding exchanged, never its table | forward and backward |
| data | each device's shard of the gradients summed | once |
| tensor | the stream gathered before, scattered after sub-layers | forward, its gradient backward, what remat repeats |
| tensor | rows of the embedding, the stream before the head, the loss's sums | forward and backward |
| all | gradients of what every device has whole (norms, biases) summed | once |

Rajbhandari et al. 2020, section 7.2.2 (fsdp), Korthikanti et al. 2022, section 4.2.2 (tensor). Kernels and activations
travel in the compute dtype, gradients of vectors in float32. Scalars are left out, as is any axis not named here.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax

from lmkit.config.experiment import Experiment
from lmkit.config.families import EncDecConfig, ViTConfig
from lmkit.config.model import Remat, TransformerConfig
from lmkit.config.sections import ParamKind
from lmkit.nn.param import ParamSpec, compute_dtype
from lmkit.nn.tree import flat
from lmkit.train.flops import is_head
from lmkit.train.state import Blueprint

_F32 = 4


class Least(NamedTuple):
    """One thing that must be sent."""

    axes: tuple[str, ...]
    kind: str  # as in parallel.collectives
    sent_bytes: float  # by a device in a step
    why: str


def least_traffic(experiment: Experiment, blueprint: Blueprint) -> list[Least]:
    """All that must be sent, on the blueprint's mesh."""
    with jax.set_mesh(blueprint.mesh):
        itemsize = compute_dtype(next(iter(experiment.model.parts().values())).dtype).itemsize
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
    heads = any(is_head(experiment.model, path) for path in specs)
    for part in experiment.model.parts().values():
        rows += _of_stream(experiment, part, sizes, itemsize)
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
    data, fsdp = sizes.get("data", 1), sizes.get("fsdp", 1)
    micro, looked_up = experiment.train.accumulate_steps, spec.kind is ParamKind.embedding
    if spec.kind is ParamKind.vector:
        whole = tuple(axis for axis in ("data", "fsdp", "tensor") if sizes.get(axis, 1) > 1 and axis not in split)
        group = math.prod(sizes[axis] for axis in whole)
        if trained and group > 1:
            yield Least(whole, "all-reduce", 2 * local * _F32 * (group - 1) / group, "gradients of norms and biases")
        return
    if trained and data > 1:
        size = _F32 if looked_up and not is_head(experiment.model, path) else itemsize
        yield Least(("data",), "all-reduce", 2 * local * size * (data - 1) / data, "gradients")
    if "fsdp" not in split or (looked_up and not is_head(experiment.model, path)):
        return
    what = "layers" if "layers" in spec.dims else "head and ends"
    one = local * (fsdp - 1) * itemsize * micro
    yield Least(("fsdp",), "all-gather", one * _passes(experiment, spec), f"{what}: parameters")
    if trained:
        yield Least(("fsdp",), "reduce-scatter", one, f"{what}: gradients")


def _passes(experiment: Experiment, spec: ParamSpec) -> int:
    """How often a parameter is gathered: what an unrolled layer without remat gathered can still be there backward."""
    again = any(part.remat is not Remat.none or part.scan_layers for part in experiment.model.parts().values())
    return 2 if again and "layers" in spec.dims else 1


def stack_lengths(experiment: Experiment, part: TransformerConfig) -> list[tuple[int, int, int]]:
    """(length, layers, sub-layers of a layer) of each stack."""
    if isinstance(part, ViTConfig):
        return [(part.num_patches, part.num_layers, 2)]
    if isinstance(part, EncDecConfig):
        return [
            (experiment.data.seq_len, part.num_layers, 2),
            (experiment.data.target_size, part.decoder_layers, 3),
        ]
    return [(experiment.data.seq_len, part.num_layers, 2)]


def _rows(experiment: Experiment, sizes: Mapping[str, int]) -> float:
    """Rows of the batch on a device."""
    return experiment.train.batch_size / (sizes.get("data", 1) * sizes.get("fsdp", 1))


def _of_stream(
    experiment: Experiment, part: TransformerConfig, sizes: Mapping[str, int], itemsize: int
) -> Iterator[Least]:
    """What the layers of a transformer send over tensor."""
    tensor = sizes.get("tensor", 1)
    for length, layers, joins in stack_lengths(experiment, part):
        one = _rows(experiment, sizes) * length * part.embed_dim * itemsize * (tensor - 1) / tensor
        # The last sub-layer's result is not needed again; with names it is all kept.
        gathers, scatters = {Remat.none: (0, 0), Remat.full: (joins, joins - 1)}.get(part.remat, (joins, 0))
        if length % tensor:  # the stream stays whole: see rules.residual_dims
            yield Least(("tensor",), "all-reduce", 2 * one * layers * (2 * joins + scatters), "stream")
            continue
        yield Least(("tensor",), "all-gather", one * layers * (2 * joins + gathers), "stream")
        yield Least(("tensor",), "reduce-scatter", one * layers * (2 * joins + scatters), "stream")


def _of_vocabulary(
    experiment: Experiment, part: TransformerConfig, sizes: Mapping[str, int], itemsize: int, heads: bool
) -> Iterator[Least]:
    """The ends of a model with a vocabulary: the look-up, the stream before the head, the sums over the vocabulary."""
    if not part.vocab_size:
        return
    fsdp, tensor = sizes.get("fsdp", 1), sizes.get("tensor", 1)
    tokens = _rows(experiment, sizes) * sum(length for length, *_ in stack_lengths(experiment, part))
    stream, others = tokens * part.embed_dim * itemsize, (tensor - 1) / tensor
    yield Least(("fsdp",), "all-gather", 4 * tokens * (fsdp - 1), "embedding: ids")
    yield Least(("fsdp",), "all-to-all", 2 * stream / tensor * (fsdp - 1) / fsdp, "embedding: columns of its rows")
    yield Least(("tensor",), "reduce-scatter", stream * others, "embedding: its rows")
    yield Least(("tensor",), "all-gather", stream * others, "embedding: their gradients")
    if heads:
        predicted = _rows(experiment, sizes) * stack_lengths(experiment, part)[-1][0]
        stream = predicted * part.embed_dim * others
        yield Least(("tensor",), "all-gather", stream * itemsize, "head: the stream")
        yield Least(("tensor",), "reduce-scatter", stream * _F32, "head: its gradient, in float32")
        yield Least(("tensor",), "all-reduce", 2 * 3 * predicted * _F32 * others, "cross-entropy's sums")
