"""What can be said of a mesh before there are devices: whether it divides the model, its sequences and the batch.

A size of -1 is not known yet; when it is, the same checks run again (`lmkit.core.setup`).
"""

import math

from lmkit.config.arithmetic.pipeline import ROW_AXES, fits
from lmkit.config.base import ConfigError
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.families import EncDecConfig, ViTConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.model import ContextAttention, Kernel, ModelConfig, TransformerConfig
from lmkit.config.sections.train import TrainConfig


def check_axes(model: ModelConfig, data: DataConfig, train: TrainConfig, mesh: MeshConfig) -> None:
    """Raises ConfigError where an axis does not go with the rest of the experiment, with the way out."""
    for prefix, part in model.towers().items():
        _check_tensor(prefix, part, data, mesh.size("tensor"))
        _check_context(prefix, part, data, mesh.size("context"), max(mesh.size("tensor"), 1))
        _check_stages(prefix, part, train, mesh)
    _check_experts(model, mesh.size("expert"))


def _check_tensor(prefix: str, part: TransformerConfig, data: DataConfig, tensor: int) -> None:
    if tensor <= 1:
        return
    for name, size in (
        (f"{prefix}.num_heads", part.num_heads),
        (f"{prefix}.num_kv_heads", part.kv_heads),
        (f"{prefix}.mlp_dim", part.mlp_size),
        ("data.seq_len", data.seq_len),
    ):
        check_divides(name, size, "mesh.tensor", tensor)
    if part.vocab_size:
        check_divides(f"{prefix}.vocab_size", part.vocab_size, "mesh.tensor", tensor)


def _check_context(prefix: str, part: TransformerConfig, data: DataConfig, context: int, tensor: int) -> None:
    """Sequences that `context` splits must be split evenly, and their attention must be one that can be."""
    if context <= 1:
        return
    if isinstance(part, ViTConfig):
        check_divides(f"{prefix}: an image's positions", part.num_positions, "mesh.context", context)
    else:
        check_divides("data.seq_len", data.seq_len, "mesh.context", context)
    if isinstance(part, EncDecConfig):
        check_divides("data.target_len", data.target_size, "mesh.context", context)
    if part.context_attention is ContextAttention.ring:
        if part.attention in (Kernel.cudnn, Kernel.splash):
            raise ConfigError(
                f"{prefix}.attention={part.attention.name} with mesh.context={context}: the ring runs in xla; "
                f"set {prefix}.context_attention=all_to_all, or {prefix}.attention=auto"
            )
        return
    check_divides(f"{prefix}.num_heads / mesh.tensor", part.num_heads // tensor, "mesh.context", context)
    keys = max(part.kv_heads // tensor, 1)
    if keys % context and context % keys:
        raise ConfigError(
            f"{prefix}.context_attention=all_to_all: {keys} key heads a device of mesh.tensor cannot be dealt "
            f"out to mesh.context={context}: one must divide the other; set {prefix}.context_attention=ring"
        )


def _check_experts(model: ModelConfig, size: int) -> None:
    """The axis `expert` is for mixtures."""
    mixtures = {prefix: n for prefix, part in model.towers().items() if (n := part.num_experts)}
    if size != 1 and not mixtures:
        raise ConfigError(
            f"mesh.expert={size} with a model without experts: set mesh.expert=1 and give the devices "
            f"to mesh.data or mesh.fsdp, or set model.num_experts"
        )
    for prefix, experts in mixtures.items() if size > 1 else ():
        check_divides(f"{prefix}.num_experts", experts, "mesh.expert", size)


def _check_stages(prefix: str, part: TransformerConfig, train: TrainConfig, mesh: MeshConfig) -> None:
    """Every stage has as many layers, and every micro-batch as many rows on each device."""
    if (stages := mesh.size("stage")) <= 1:
        return
    axis = "mesh.stage" if part.rounds == 1 else f"{prefix}.rounds x mesh.stage"
    for name, layers in part.stacks().items():
        check_divides(f"{prefix}.{name}", layers, axis, part.rounds * stages)
    asked, shards = part.microbatches, [mesh.size(axis) for axis in ROW_AXES]
    if part.rounds > 1 and 0 < asked < stages:
        raise ConfigError(
            f"{prefix}.microbatches={asked} with {prefix}.rounds={part.rounds}: a second round begins when the "
            f"first has filled mesh.stage={stages}; set {prefix}.microbatches={stages} or more, or rounds=1"
        )
    rows = train.batch_size // train.accumulate_steps // math.prod(shards)
    if asked and min(shards) > 0 and rows % stages == 0 and not fits(asked, rows, stages):
        near = [n for n in range(1, rows + 1) if fits(n, rows, stages)]
        below, above = max(n for n in near if n < asked), [n for n in near if n > asked][:1]
        raise ConfigError(
            f"{prefix}.microbatches={asked} with mesh.stage={stages}: the {rows} rows of a batch that a device "
            f"of each stage has do not divide into them; the nearest that fit are "
            f"{' and '.join(map(str, [below, *above]))}, and 0 chooses"
        )


def check_divides(name: str, size: int, axis: str, parts: int) -> None:
    """Raises unless `parts` divides `size`; names both and the nearest sizes and parts that fit."""
    if size % parts == 0:
        return
    below = size // parts * parts
    fits = [n for n in range(1, size + 1) if size % n == 0]
    near = min(fits, key=lambda n: abs(n - parts))
    sizes = f"{below} and {below + parts}" if below else f"{parts}"
    raise ConfigError(
        f"{name}={size} is not divisible by {axis}={parts}: nearest that fit are {name}={sizes}, or {axis}={near}"
    )
