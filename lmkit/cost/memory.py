"""The memory of a device, item by item.

What is there all through a step, and what only in one of its two narrow places: the loss, whose logits exist a chunk at
a time, and the backward pass of a layer, beside which all gradients already have their room.
"""

import math
from typing import NamedTuple

from lmkit.config.arithmetic.pipeline import Pipe, pipes_of
from lmkit.config.sections.model import Remat, TransformerConfig
from lmkit.config.sections.objective import ObjectiveKind
from lmkit.core.state import local_bytes
from lmkit.cost.activations import Share, kept_bytes, offloaded_bytes, working_bytes
from lmkit.cost.context import PlanContext, documents_apart, kernel_of
from lmkit.cost.flops import is_head
from lmkit.cost.traffic import stack_lengths
from lmkit.nn.param import is_float8
from lmkit.nn.tree import flat

_F32 = 4
_LANES = 128
ALWAYS, BACKWARD, LOSS = "all through the step", "in the backward pass", "in the loss"


class Item(NamedTuple):
    """Something that takes room on a device."""

    name: str
    size: float  # bytes
    when: str  # ALWAYS, BACKWARD or LOSS
    why: str


class Memory(NamedTuple):
    """What a step takes."""

    items: list[Item]
    host_bytes: float  # of a host: what a save copies, and what remat=offload keeps there
    start: float = 0.0  # while the state is made, or read from init_from: each parameter is there once

    @property
    def narrow(self) -> str:
        """The context where most is needed."""
        return max((BACKWARD, LOSS), key=self._at)

    @property
    def peak(self) -> float:
        return max(self._at(ALWAYS) + self._at(self.narrow), self.start)

    def _at(self, when: str) -> float:
        return sum(item.size for item in self.items if item.when == when)


def memory_of(context: PlanContext) -> Memory:
    """Every item, by formula."""
    shapes, train = context.blueprint.shapes, context.experiment.train
    held = {
        "parameters": local_bytes(context.blueprint.param_shapes), "optimiser state": local_bytes(shapes["opt"]),
        "moving average": local_bytes(shapes.get("ema", {})),
    }  # fmt: skip
    gradients = local_bytes(shapes["params"])
    layers = _of_layers(context)
    items = [Item(name, size, ALWAYS, "exact, by shapes and shardings") for name, size in held.items()]
    if train.accumulate_steps > 1:
        why = f"float32, over train.accumulate_steps={train.accumulate_steps}"
        items.append(Item("accumulated gradients", gradients, ALWAYS, why))
    items += [
        Item("activations", layers.kept, ALWAYS, layers.why),
        Item("ends of the model", layers.ends, ALWAYS, "the stream after the last layer and its norm"),
        Item("gradients", gradients, BACKWARD, "float32, of what trains"),
        Item("working set of a layer", layers.working, BACKWARD, "made again, and gradients on their way"),
        Item("communication buffers", layers.buffers, BACKWARD, "two layers' weights gathered, a layer's gradients"),
        Item(
            "logits chunk", _loss(context), LOSS, f"objective.chunk_tokens={context.experiment.objective.chunk_tokens}"
        ),
    ]
    saved = sum(local_bytes(tree) for name, tree in shapes.items() if name not in context.blueprint.unsaved)
    per_host = min(context.experiment.hardware.devices_per_host, context.num_devices)
    start = sum(held.values())
    return Memory([item for item in items if item.size], per_host * (saved + layers.offloaded), start)


class _Layers(NamedTuple):
    kept: float
    offloaded: float
    working: float
    buffers: float
    ends: float
    why: str


def _of_layers(context: PlanContext) -> _Layers:
    """The sums, and the largest, over the stacks of all transformers of the model."""
    kept = offloaded = ends = 0.0
    working, why = [0.0], []
    norm = 0 if context.experiment.hardware.platform == "tpu" else _F32  # there the last norm's copy joins its users
    pipes = pipes_of(context.experiment.model, context.experiment.train, context.sizes)
    for prefix, part in context.experiment.model.towers().items():
        pipe, asked, part = pipes.get(prefix, Pipe(1, 1, 1)), part.remat, context.compiled(part)
        for length, layers, joins in stack_lengths(context.experiment, part):
            share = share_of(context, length, joins - 1)
            stream = share.tokens * part.embed_dim / share.stream
            ends += stream * (share.itemsize + norm)
            if pipe.stages > 1:  # the rows of all stages are in the pipe, on their way in and out, a tick's at a time
                ends += 2 * stream * share.itemsize * pipe.stages
                share = share._replace(tokens=share.tokens * pipe.stages / pipe.microbatches)
            here = layers / pipe.stages / pipe.rounds * pipe.ticks
            kept += here * kept_bytes(part, share)
            offloaded += here * offloaded_bytes(part, share)
            working.append(_working(context, part, share, length))
        undone = ", which is undone where layers are not scanned" if part.remat is not asked else ""
        told = f"; {pipe}" if pipe.stages > 1 else ""
        why.append(f"{part.num_layers} layers, model.remat={asked.name}{undone}{told}")
        if pipe.rounds > 1:  # weights chosen for a tick are kept with it
            kept += sum(size for _, size, spec in _leaves(context) if spec.in_stack) * _F32 / pipe.rounds * pipe.ticks
        if part.remat is Remat.none:
            kept += _copies(context, part)
    return _Layers(kept, offloaded, max(working), _buffers(context), ends, "; ".join(why))


def _working(context: PlanContext, part: TransformerConfig, share: Share, length: int) -> float:
    platform = context.experiment.hardware.platform
    return working_bytes(part, share, kernel_of(context, part, length), length, platform, documents_apart(context))


def share_of(context: PlanContext, length: int, attentions: int = 1) -> Share:
    """What a device has of a layer for sequences of this length."""
    context_shards, tensor = context.size("context"), context.size("tensor")
    stream = tensor if length % (context_shards * tensor) == 0 else 1  # see rules.residual_dims
    on_cpu = context.experiment.hardware.platform == "cpu"
    flat_products = context.num_devices == 1 or (on_cpu and context_shards == 1)
    lanes = _LANES if context.experiment.hardware.platform == "tpu" else 1
    return Share(
        context.rows * length / context_shards, tensor, stream, context.itemsize, flat_products, attentions,
        context_shards, context.size("expert"), lanes,
    )  # fmt: skip


def _copies(context: PlanContext, part: TransformerConfig) -> float:
    """The layers' weights as they are multiplied, which are kept without remat; experts' are kept gathered."""
    gathered = context.size("fsdp") if part.num_experts else 1
    total = 0.0
    for path, leaf, spec in _leaves(context):
        if spec.in_stack and spec.num_in:
            itemsize = 1 if is_float8(part, spec) else context.itemsize % _F32  # float32 is multiplied as it is
            total += leaf * itemsize * (gathered if "expert" in spec.dims and ".router." not in path else 1)
    return total / len(context.experiment.model.towers())


def _leaves(context: PlanContext):
    """(path, elements on a device, spec) of every parameter."""
    specs = flat(context.blueprint.specs)
    for path, leaf in flat(context.blueprint.param_shapes).items():
        yield path, math.prod(leaf.sharding.shard_shape(leaf.shape)), specs[path]


def _buffers(context: PlanContext) -> float:
    """Weights of a layer, whole over fsdp in the compute dtype, twice, as the next come while these are used; and its
    gradients before they are scattered. Experts' are gathered one matrix after the other. Weights that are whole and in
    the compute dtype already are multiplied where they are."""
    copied = context.size("fsdp") > 1 or context.itemsize != _F32
    layers = max(part.num_layers for part in context.experiment.model.towers().values()) / context.size("stage")
    times = (
        (size, 1 if "expert" in spec.dims or not copied else 3) for _, size, spec in _leaves(context) if spec.in_stack
    )
    return sum(size * count for size, count in times) / layers * context.size("fsdp") * context.itemsize


def _loss(context: PlanContext) -> float:
    """The head gathered and its gradient, a chunk's logits, their exponentials and gradients, the stream's gradient."""
    experiment = context.experiment
    heads = [path for path in flat(context.blueprint.specs) if is_head(experiment.model, path)]
    if not heads or experiment.objective.kind in (ObjectiveKind.classify, ObjectiveKind.regress):
        return 0.0
    part = next(iter(experiment.model.towers().values()))
    length = context.predicted or context.target_len or context.source_len
    tokens, tensor = context.rows * length / context.size("context"), context.size("tensor")
    chunk = min(experiment.objective.chunk_tokens or tokens, tokens)
    chunk = tokens / math.ceil(tokens / chunk)
    copies = 2 if experiment.hardware.platform == "cpu" else 1  # elsewhere their exponentials join the gradients
    logits = chunk * part.vocab_size / tensor * (copies * _F32 + context.itemsize)
    head = part.vocab_size / tensor * part.embed_dim * (2 * _F32 + context.itemsize)
    return logits + head + tokens * part.embed_dim * (context.itemsize + _F32)
