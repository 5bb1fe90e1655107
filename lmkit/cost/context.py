"""The experiment on hardware that is not here: everything that was left open is settled, nothing is allocated."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from lmkit.compiler.programs import has_remat
from lmkit.compiler.topology import gpu_capability
from lmkit.config.arithmetic.mesh import AXES, axis_sizes, batch_shards
from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment, check_mesh
from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, ViTConfig
from lmkit.config.sections.model import DType, Kernel, ModelConfig, Position, Remat, TransformerConfig
from lmkit.config.sections.objective import ObjectiveKind
from lmkit.config.sections.tokenizer import TokenizerKind
from lmkit.core.state import Blueprint, make_blueprint
from lmkit.nn.attend import choose_kernel

_BYTES_VOCAB = 257  # of tokenizer=bytes


class PlanContext(NamedTuple):
    """An experiment and where it is to run."""

    experiment: Experiment  # with the sizes of the mesh, the compute dtype and the vocabulary
    blueprint: Blueprint
    sizes: dict[str, int]  # of the mesh's axes
    sides: tuple[int, ...]  # of a TPU slice, in chips; () for what is no TPU
    itemsize: int  # bytes of a number in the compute dtype
    source_len: int
    target_len: int
    predicted: int  # tokens of a row that the head works on; 0 = all

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def rows(self) -> float:
        """Rows of a micro-batch on a device."""
        train = self.experiment.train
        return train.batch_size / train.accumulate_steps / batch_shards(self.sizes)

    @property
    def tokens_per_step(self) -> int:
        return self.experiment.train.batch_size * (self.source_len + self.target_len)

    def compiled(self, part: TransformerConfig) -> TransformerConfig:
        """As its compiler takes it: a CPU's may keep what unrolled layers should make again (compiler/programs.py)."""
        kept = self.experiment.hardware.platform == "cpu" and not part.scan_layers and part.remat is not Remat.none
        return dataclasses.replace(part, remat=Remat.none) if kept and not has_remat() else part

    def size(self, *axes: str) -> int:
        """Devices along these axes."""
        return math.prod(self.sizes.get(axis, 1) for axis in axes)


def make_context(experiment: Experiment, blueprint: Blueprint | None = None) -> PlanContext:
    """Raises ConfigError where the hardware is not known, or the mesh, the batch or a parameter does not divide.

    `blueprint`: of the same model on any mesh, where there is one already; its mesh may have devices.
    """
    hardware, train = experiment.hardware, experiment.train
    sizes = _sizes(experiment, count_devices(experiment))
    check_mesh(experiment, math.prod(sizes.values()))
    hardware = dataclasses.replace(hardware, devices=math.prod(sizes.values()))
    sides = hardware.slice_sides(experiment.mesh.num_slices)
    mesh = experiment.mesh.resolved(sizes)
    dtype = DType.float32 if hardware.platform == "cpu" else DType.bfloat16
    model = _settled(experiment, experiment.model, dtype)
    experiment = dataclasses.replace(experiment, hardware=hardware, mesh=mesh, model=model)
    abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes))
    if blueprint is None:
        blueprint = make_blueprint(model, experiment.optim, train.steps, abstract, experiment.lora)  # type: ignore[arg-type]
    elif blueprint.mesh != abstract:
        blueprint = blueprint.on(abstract)  # type: ignore[arg-type]
    part = next(iter(model.towers().values()))
    return PlanContext(experiment, blueprint, sizes, sides, jnp.dtype(part.dtype.name).itemsize, *_lengths(experiment))


def count_devices(experiment: Experiment) -> int:
    """Of the hardware, else of the mesh. Raises ConfigError where that is not known, or no slice has so many."""
    hardware = experiment.hardware
    if hardware.name == "auto":
        raise ConfigError(
            "hardware=auto looks at the devices here: name those that are meant, such as hardware=h100_64"
        )
    if not hardware.devices:
        return _asked(experiment)
    hardware.slice_sides(experiment.mesh.num_slices)
    return hardware.devices


def _sizes(experiment: Experiment, devices: int) -> dict[str, int]:
    """The sizes of the axes; where they do not multiply to the devices, the error says which would."""
    mesh, name = experiment.mesh, experiment.hardware.name.removeprefix("tpu_")
    asked = {axis: mesh.size(axis) for axis in AXES}
    fixed, rest = math.prod(size for size in asked.values() if size > 0), min(asked.values()) < 0
    if devices % fixed == 0 and (rest or devices == fixed):
        return axis_sizes(mesh, devices)
    shown = " ".join(f"mesh.{axis}={size}" for axis, size in asked.items() if size > 1)
    largest = max(asked, key=lambda axis: asked[axis])
    others = fixed // asked[largest]
    room = devices // others if devices % others == 0 else 0
    can = [n for n in range(1, room + 1) if room % n == 0] if rest else [room] * bool(room)
    ways = f"mesh.{largest} can be {', '.join(map(str, can))}, or " if can else ""
    more = " or a multiple" if rest else ""
    raise ConfigError(
        f"{shown} takes {fixed} devices{more}, hardware.devices={devices}: {ways}take hardware={name}_{fixed}{more}"
    )


def _asked(experiment: Experiment) -> int:
    """The devices of a mesh that says them all."""
    sizes = [experiment.mesh.size(axis) for axis in AXES]
    if min(sizes) < 0:
        name = experiment.hardware.name.removeprefix("tpu_")
        raise ConfigError(
            f"hardware={name}: how many? Write hardware={name}_64, hardware.devices=64, or a mesh without -1"
        )
    return math.prod(sizes)


def _settled(experiment: Experiment, model: ModelConfig, dtype: DType) -> ModelConfig:
    """The model with its dtype, and with the tokenizer's vocabulary where it has none of its own."""
    if isinstance(model, CLIPConfig):
        text, vision = _settled(experiment, model.text, dtype), _settled(experiment, model.vision, dtype)
        return dataclasses.replace(model, text=text, vision=vision)
    assert isinstance(model, TransformerConfig)
    chosen = dtype if model.dtype is DType.auto else model.dtype
    if isinstance(model, ViTConfig) or model.vocab_size:
        return dataclasses.replace(model, dtype=chosen)
    tokenizer = experiment.tokenizer
    if tokenizer.kind in (TokenizerKind.file, TokenizerKind.init):
        raise ConfigError("model.vocab_size=0 takes the tokenizer's size, which is not known here: set it")
    size = _BYTES_VOCAB if tokenizer.kind is TokenizerKind.bytes else tokenizer.vocab_size
    return dataclasses.replace(model, dtype=chosen, vocab_size=size)


def _lengths(experiment: Experiment) -> tuple[int, int, int]:
    """Tokens of a row's source and of its target, and how many of them are predicted (0: all)."""
    model, data = experiment.model, experiment.data
    if isinstance(model, ViTConfig):
        return model.num_patches, 0, 0
    if isinstance(model, CLIPConfig):
        return data.seq_len + model.vision.num_patches, 0, 0
    if isinstance(model, EncDecConfig):
        return data.seq_len, data.target_size, 0
    masked = isinstance(model, BERTConfig) and experiment.objective.kind is ObjectiveKind.masked_lm
    return data.seq_len, 0, math.ceil(data.seq_len * experiment.objective.mask_share) if masked else 0


def kernel_of(context: PlanContext, part: TransformerConfig, length: int) -> Kernel:
    """The attention kernel there. Raises ConfigError where the one asked for cannot run."""
    return choose_kernel(
        part.attention, backend=context.experiment.hardware.platform, dtype=jnp.dtype(part.dtype.name),
        head_size=part.head_size, seq_len=length, softcap=part.attention_softcap,
        bias=part.position is Position.relative, apart=documents_apart(context),
        capability=gpu_capability(context.experiment.hardware),
    )  # fmt: skip


def documents_apart(context: PlanContext) -> bool:
    """Whether attention is handed segments: of documents in a row, and of padding, which all other rows have."""
    experiment = context.experiment
    rows = {ObjectiveKind.causal_lm, ObjectiveKind.masked_lm}
    return experiment.objective.kind not in rows or experiment.data.isolate_documents
