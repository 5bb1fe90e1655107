"""What a step computes, and what it moves between a device and its memory.

FLOPs are those of cost/flops.py: 6 a parameter of a product and token, attention 6 x 2 N H x the keys that a query
sees (of causal attention half), a mixture's experts as those a token goes to. What remat computes again comes on top,
and is no part of MFU:

| remat | computed again, of the forward pass |
|---|---|
| none, dots | nothing |
| names, offload | and all of the layers but the two products whose results are kept or not needed |
| full | and attention's output projection |

Attention's kernels keep no weights [T, S]: each backward pass makes the scores once more.
"""

import dataclasses
import math

from lmkit.config.sections.model import Kernel, LinearDType, NormOrder, Remat
from lmkit.config.sections.optim import Optimizer
from lmkit.core.state import local_bytes
from lmkit.cost.activations import kept_bytes
from lmkit.cost.context import PlanContext, kernel_of
from lmkit.cost.flops import SCORES, flops_of_each, is_head
from lmkit.cost.memory import share_of
from lmkit.cost.traffic import stack_lengths
from lmkit.nn.tree import flat
from lmkit.optim.muon import exchanges, pools

_F32 = 4
OUTSIDE = ("head", "ends")  # parts of the model that are in none of its layers
_ITERATIONS = 5  # of Newton and Schulz, as in optax
_PARTS = {  # of a dotted path, the first that is in it
    "attention.out": "attention: output", "attention": "attention: q, k, v", "cross.out": "attention: output",
    "cross": "attention: q, k, v", "router": "router", "mlp.down": "MLP: down", "mlp": "MLP: up",
}  # fmt: skip


def flops_by_part(context: PlanContext) -> dict[str, float]:
    """Of a step over all devices, forward and backward, without what is computed again."""
    each = flops_of_each(
        context.experiment.model, context.blueprint.specs, context.source_len, context.target_len, context.predicted
    )
    parts: dict[str, float] = {}
    for path, flops in each.items():
        name = _part_of(context, path)
        parts[name] = parts.get(name, 0.0) + flops * context.experiment.train.batch_size
    return {name: flops for name, flops in parts.items() if flops}


def _part_of(context: PlanContext, path: str) -> str:
    if path == SCORES:
        return "attention: scores"
    if is_head(context.experiment.model, path):
        return "head"
    words = f".{path}."
    return next((part for word, part in _PARTS.items() if f".{word}." in words), "ends")


def repeated_flops(context: PlanContext, parts: dict[str, float]) -> float:
    """What remat and attention's backward pass compute again, in a step over all devices."""
    part = context.compiled(next(iter(context.experiment.model.towers().values())))
    scores = parts.get("attention: scores", 0.0)
    again = scores / 6  # queries times keys: half of the forward pass
    if part.remat in (Remat.none, Remat.dots):
        return again
    experts = bool(part.num_experts)
    names = ["attention: scores", "attention: q, k, v", "MLP: up"]
    if experts or (part.remat is Remat.full and part.norm_order is not NormOrder.pre):
        names += ["MLP: down"]  # a router's gradient needs what the experts gave
    if part.remat is Remat.full:
        names += ["attention: output"]
    return again + sum(parts.get(name, 0.0) for name in names) / 3


def timed_flops(context: PlanContext, parts: dict[str, float]) -> dict[str, float]:
    """The same, as many as take so long in the compute dtype: in float8 linear layers are faster where hardware is."""
    model, hardware = next(iter(context.experiment.model.towers().values())), context.experiment.hardware
    if model.linear_dtype is not LinearDType.float8 or not hardware.fp8_tflops:
        return parts
    wide = hardware.bf16_tflops if context.itemsize == 2 else hardware.fp32_tflops
    linear = {"attention: q, k, v", "attention: output", *(() if model.num_experts else ("MLP: up", "MLP: down"))}
    return {name: flops * (wide / hardware.fp8_tflops if name in linear else 1) for name, flops in parts.items()}


def update_flops(context: PlanContext) -> float:
    """The optimiser's own matrix products, in a step over all devices: Muon's.

    Each of 5 iterations on a matrix [m, n], m <= n, is X Xᵀ, its square, and their product with X (Jordan et al. 2024):
    4 m² n + 2 m³. Each device works on whole matrices, its share of those dealt out with what fills the shares up
    (optim/muon.py); devices with the same shards do the same work.
    """
    if context.experiment.optim.kind is not Optimizer.muon:
        return 0.0
    per_device, sizes = 0.0, context.blueprint.mesh.shape
    trained = {
        path: spec for path, spec in flat(context.blueprint.specs).items() if path in context.blueprint.trainable
    }
    for pool in pools(trained, sizes):
        m, n, steps = pool.rows, pool.columns, exchanges(pool, sizes)
        matrices = max(1, steps[-1].count // steps[-1].size) if steps else pool.count
        per_device += _ITERATIONS * matrices * (4.0 * m * m * n + 2.0 * m**3)
    return per_device * context.num_devices


def memory_traffic(context: PlanContext) -> dict[str, float]:
    """Bytes between a device and its memory in a step.

    The update reads and writes the state once; gradients are written and read for each micro-batch; gathered weights
    are written once and read for each product of each pass; activations, as much as a layer without remat keeps, are
    written and read in each pass. With remat=dots what is made again was not written before.
    """
    experiment, shapes = context.experiment, context.blueprint.shapes
    micro, passes = experiment.train.accumulate_steps, 0.0
    activations = 0.0
    for part in experiment.model.towers().values():
        passes = 2.0 if context.compiled(part).remat in (Remat.none, Remat.dots) else 3.0
        for length, layers, joins in stack_lengths(experiment, part):
            everything = dataclasses.replace(part, remat=Remat.none)
            activations += 2 * passes * layers * kept_bytes(everything, share_of(context, length, joins - 1))
    whole = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in flat(context.blueprint.param_shapes).values()
    ) * context.size("fsdp")
    return {
        "update of the state": 2 * local_bytes(shapes),
        "gradients": 2 * micro * local_bytes(shapes["params"]),
        "weights": micro * whole * context.itemsize * (2 * passes + 1),
        "activations": micro * activations,
    }


def scores_traffic(context: PlanContext, parts: dict[str, float]) -> dict[str, float]:
    """Bytes of attention's float32 scores in a step, where it is XLA's: no kernel keeps them from the memory.

    The product writes them, the softmax reads and writes, the product with the values reads; the backward pass moves
    twice as much, and what remat makes again as much as before. On a CPU their blocks stay in its caches.
    """
    part, platform = next(iter(context.experiment.model.towers().values())), context.experiment.hardware.platform
    length = max(length for length, *_ in stack_lengths(context.experiment, part))
    if platform == "cpu" or context.size("context") > 1 or kernel_of(context, part, length) is not Kernel.xla:
        return {}
    scores = parts.get("attention: scores", 0.0) / (12 * part.head_size) / context.num_devices  # 12 FLOPs a number
    moved = 12 if part.remat in (Remat.none, Remat.dots) else 16
    return {"scores of attention": moved * _F32 * scores}
