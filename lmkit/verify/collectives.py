"""What a compiled step sends between devices, and what it must send at least."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from lmkit.config.experiment import Experiment
from lmkit.config.families import EncDecConfig, ViTConfig
from lmkit.nn.tree import flat
from lmkit.parallel.mesh import batch_shards

_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_LINE = re.compile(rf"= (.+?) ({'|'.join(_KINDS)})(?:-start)?\(")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r"%([\w.\-]+)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


class Traffic(NamedTuple):
    """Collectives of one kind: how many, and the bytes that a device sends in them in a step."""

    count: int
    sent_bytes: float


def count_collectives(text: str) -> dict[str, Traffic]:
    """The collectives of a compiled program (its as_text()), by kind; those in a loop as often as it turns.

    Those of one device are left out.
    """
    found = {kind: Traffic(0, 0.0) for kind in _KINDS}
    for line, times in _executed(text):
        if (match := _LINE.search(line)) is None:
            continue
        kind, group = match[2], _group_size(line)
        if group == 1:
            continue
        size = _size(match[1], "-start(" in line, kind)
        share = (group - 1) / group
        # a device sends: its part of a gather to all others; all others' parts of what is scattered; both in a reduce
        sent = {"all-gather": size * share, "reduce-scatter": size * (group - 1), "all-reduce": 2 * size * share,
                "all-to-all": size * share, "collective-permute": size}[kind]  # fmt: skip
        found[kind] = Traffic(found[kind].count + times, found[kind].sent_bytes + times * sent)
    return {kind: traffic for kind, traffic in found.items() if traffic.count}


def _executed(text: str) -> Iterator[tuple[str, int]]:
    """Every line of the program, and how often it runs; of a condition both sides count."""
    bodies: dict[str, list[str]] = {"": []}
    times, name = {"": 1}, ""
    for line in text.splitlines():
        if (match := _COMPUTATION.match(line)) is not None:
            name = match[2]
            bodies[name], times[name] = [], int(bool(match[1]))
        else:
            bodies[name].append(line)
            name = "" if line == "}" else name
    for name in reversed(bodies):  # a computation stands before those that call it
        for line in bodies[name]:
            yield line, times[name]
            turns = _TURNS.search(line)
            for called in _NAME.findall(line.partition(" = ")[2]):
                if called in times:
                    times[called] += times[name] * (int(turns[1]) if turns and f"body=%{called}" in line else 1)


def _size(shapes: str, started: bool, kind: str) -> float:
    """Bytes of a collective's result; a start's tuple holds operands, too: the largest is the result."""
    sizes = [_BYTES.get(name, 1) * math.prod(int(n) for n in dims.split(",") if n) for name, dims in
             _SHAPE.findall(shapes)]  # fmt: skip
    if started and kind != "all-reduce":
        return max(sizes, default=0)
    return sum(sizes)


def _group_size(line: str) -> int:
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(match[2])
    return 2 if "source_target_pairs" in line and "{}" not in line else 1


def least_bytes(experiment: Experiment, shapes: Any, sizes: Mapping[str, int]) -> dict[str, float]:
    """What a device must send in a step at least, by the axis that asks for it.

    data: each shard of the gradient summed once. fsdp: the parameters gathered once, their gradients scattered once
    (Rajbhandari et al. 2020, section 7.2, without gathering again for the backward pass). tensor: the stream gathered
    before and scattered after each of the two sub-layers, forward and backward (Korthikanti et al. 2022, section
    4.2.2), counted for a stack of blocks; embedding, head and loss come on top. stage: the stream handed on in every
    tick of a round, forward and backward.
    """
    data, fsdp, tensor, stages = (sizes.get(axis, 1) for axis in ("data", "fsdp", "tensor", "stage"))
    leaves = flat(shapes).values()
    local = sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    split = sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in leaves
        if "fsdp" in jax.tree.leaves(tuple(leaf.sharding.spec))
    )
    rows = experiment.train.batch_size / batch_shards(sizes)
    stream = handed = 0.0
    for part in experiment.model.parts().values():
        tokens = part.num_patches if isinstance(part, ViTConfig) else experiment.data.seq_len
        joins = 2 * part.num_layers + (3 * part.decoder_layers if isinstance(part, EncDecConfig) else 0)
        stream += 4 * joins * rows * tokens * part.embed_dim * 4
        handed += 2 * len(part.stacks()) * part.rounds * stages * rows * tokens * part.embed_dim * 4
    return {
        "data": 2 * local * (data - 1) / data,
        "fsdp": 2 * split * (fsdp - 1),
        "tensor": stream * (tensor - 1) / tensor,
        "stage": handed / (tensor * sizes.get("context", 1)) if stages > 1 else 0.0,
    }
