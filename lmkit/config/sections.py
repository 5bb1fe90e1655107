"""The sections of an experiment other than the model: what they are called, mean, and may be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


class Products(Enum):
    """The library that multiplies on a CPU. `auto`: oneDNN in bfloat16 runs of a minute or more, where jax calls it."""

    auto = 0
    xla = 1
    onednn = 2


@dataclass
class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    section: ClassVar[str] = "run"

    name: str = key("", "name of the run; experiments set it")
    dir: str = key("", "the run's directory; an existing one is resumed; '' = runs/<name>/<date-time>")
    seed: int = key(0, "root of all randomness: initialisation, sample order, dropout", at_least=0)
    cpu_devices: int = key(
        0, "pretend that the CPU is so many devices (per process), to try a mesh; 0 = off", at_least=0
    )
    cpu_products: Products = key(
        Products.auto, "library of the train step's products on a CPU; oneDNN's are not cached"
    )
    compile_cache: str = key("auto", "folder of compiled programs; auto = the user's cache folder, '' = off")


@dataclass
class TrainConfig(Section):
    """The main loop."""

    section: ClassVar[str] = "train"

    steps: int = key(1000, "optimiser steps", at_least=1)
    batch_size: int = key(32, "sequences per step over all devices and hosts", at_least=1)
    accumulate_steps: int = key(1, "micro-batches a step is split into, accumulated in float32", at_least=1)
    log_every_steps: int = key(10, "steps between rows of metrics", at_least=1)
    eval_every_steps: int = key(200, "steps between evaluations; 0 = only at the end", at_least=0)
    eval_batches: int = key(0, "batches in an evaluation on the way; 0 = all held-out text, as at the end", at_least=0)
    eval_texts: int = key(64, "with a source: held-out texts written and scored on the way; 0 = none", at_least=0)
    eval_beams: int = key(1, "beams of the search that writes them; 1 = the likeliest token", at_least=1)
    patience: int = key(0, "evaluations without a better checkpoint.best_metric that end the run; 0 = off", at_least=0)
    folds: int = key(0, "cross-validation: so many runs, each with another share of the data held out", at_least=0)
    sample_tokens: int = key(96, "tokens of the sample made at each evaluation; 0 = none", at_least=0)
    sample_prompt: str = key("", "text that the sample continues; '' = start of a document")
    sample_temperature: float = key(0.7, "temperature of the sample; 0 = greedy", at_least=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise ConfigError("train.folds=1: cross-validation needs 2 folds or more; 0 switches it off")
        if self.patience and not self.eval_every_steps:
            raise ConfigError(
                f"train.patience={self.patience} with train.eval_every_steps=0: there is no evaluation on the way to "
                f"stop at; set train.eval_every_steps"
            )
        if self.batch_size % self.accumulate_steps:
            fit = self.batch_size // self.accumulate_steps * self.accumulate_steps
            raise ConfigError(
                f"train.batch_size={self.batch_size} is not divisible by train.accumulate_steps="
                f"{self.accumulate_steps}: the nearest sizes that fit are {fit or self.accumulate_steps} "
                f"and {fit + self.accumulate_steps}"
            )


class ObjectiveKind(Enum):
    """What the loss is."""

    causal_lm = 0  # gpt, text: the next token
    masked_lm = 1  # bert, text: the hidden tokens
    seq2seq = 2  # encdec, records: a text for a text or a sound
    classify = 3  # vit, bert, records: a class for an image or a text
    contrastive = 4  # clip, records: which text belongs to which image
    span_corruption = 5  # encdec, text: the spans cut out of it
    chat = 6  # gpt, records: the answers of a conversation
    classify_tokens = 7  # bert, records: a class for each word
    regress = 8  # vit, bert, records: a number for an image or a text


@dataclass
class ObjectiveConfig(Section):
    """The loss."""

    section: ClassVar[str] = "objective"

    kind: ObjectiveKind = key(ObjectiveKind.causal_lm, "what is predicted")
    chunk_tokens: int = key(2048, "tokens per device whose logits exist at once; 0 = all", at_least=0)
    z_loss: float = key(0.0, "weight of log(Z)^2, keeps logits from drifting (PaLM, section 5: 1e-4)", at_least=0.0)
    label_smoothing: float = key(0.0, "share of the target spread over all classes", at_least=0.0, at_most=0.99)
    mask_share: float = key(0.15, "share of the tokens that is masked or cut out", at_least=0.01, at_most=0.9)
    mask_words: bool = key(False, "with masked_lm: mask whole words")
    next_sentence: bool = key(False, "with masked_lm: rows are two parts; predict whether they belong together")
    span_tokens: float = key(3.0, "with span_corruption: mean length of a span", at_least=1.0)


class Optimizer(Enum):
    """Update rule."""

    adamw = 0
    lion = 1
    adafactor = 2
    muon = 3
    sgd = 4
    schedule_free_adamw = 5


class Schedule(Enum):
    """Course of the learning rate after the warm-up."""

    cosine = 0
    linear = 1
    wsd = 2  # warm-up, stable, decay: constant, then linear decay over the last `decay_share`
    constant = 3


class ParamKind(Enum):
    """What a parameter is, for decay masks."""

    matrix = 0
    embedding = 1
    vector = 2  # norm scales and biases


@dataclass
class OptimConfig(Section):
    """The optimiser."""

    section: ClassVar[str] = "optim"

    kind: Optimizer = key(Optimizer.adamw, "update rule")
    learning_rate: float = key(3e-4, "peak learning rate (of matrices, with muon)", at_least=0.0)
    adam_learning_rate: float = key(3e-3, "with muon: peak rate of what is not a matrix, and of the head", at_least=0.0)
    schedule: Schedule = key(Schedule.cosine, "course of the learning rate after the warm-up")
    warmup_steps: int = key(100, "steps of linear warm-up from 0", at_least=0)
    decay_share: float = key(0.2, "with wsd: share of the steps that decay", at_least=0.0, at_most=1.0)
    final_ratio: float = key(0.1, "last learning rate / peak", at_least=0.0, at_most=1.0)
    beta1: float = key(0.9, "momentum of Adam and Lion", at_least=0.0, at_most=1.0)
    beta2: float = key(0.95, "second-moment decay of Adam, momentum decay of Lion", at_least=0.0, at_most=1.0)
    eps: float = key(1e-8, "added to Adam's denominator", at_least=0.0)
    momentum: float = key(0.95, "momentum of Muon and SGD", at_least=0.0, at_most=1.0)
    weight_decay: float = key(0.1, "decoupled decay, times the learning rate", at_least=0.0)
    decay: list[ParamKind] = key([ParamKind.matrix], "kinds of parameters that decay")
    clip_norm: float = key(1.0, "largest global norm of the gradient; 0 = no clipping", at_least=0.0)
    freeze: list[str] = key([], "patterns of parameters that do not train, such as embed or stack.*.attention.*")
    rates: dict[str, float] = key({}, "pattern: factor of its parameters' learning rate; the last that matches counts")
    ema: float = key(
        0.0, "decay of a moving average of parameters used at evaluation; 0 = off", at_least=0.0, at_most=1.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for pattern, factor in self.rates.items():
            if factor <= 0:
                raise ConfigError(
                    f"optim.rates: {pattern}={factor}: a factor is above 0; optim.freeze=[{pattern}] stops it"
                )
        if self.rates and self.kind is Optimizer.schedule_free_adamw:
            raise ConfigError(
                "optim.rates with optim.kind=schedule_free_adamw: it evaluates at an average that one learning rate "
                "is behind; set optim.kind=adamw, or optim.rates={}"
            )


@dataclass
class AxesConfig(Section):
    """Sizes across slices (DCN) or nodes of a split axis."""

    section: ClassVar[str] = "mesh.dcn"

    data: int = key(1, "replicas across slices", at_least=1)
    fsdp: int = key(1, "parameter shards across slices", at_least=1)
    tensor: int = key(1, "tensor shards across slices", at_least=1)
    context: int = key(1, "sequence shards across slices", at_least=1)
    expert: int = key(1, "expert shards across slices", at_least=1)
    stage: int = key(1, "pipeline stages across slices", at_least=1)


@dataclass
class MeshConfig(Section):
    """How devices are arranged. One axis may be -1: it takes the devices that are left."""

    section: ClassVar[str] = "mesh"

    data: int = key(-1, "replicas of the model, each with its share of the batch", at_least=-1)
    fsdp: int = key(1, "shards of every parameter, each with its share of the batch", at_least=-1)
    tensor: int = key(1, "shards of heads, MLP and vocabulary; norms are sharded over the sequence", at_least=-1)
    context: int = key(1, "shards of every sequence, for long ones: model.context_attention", at_least=-1)
    expert: int = key(1, "shards of the experts, each with its share of the batch", at_least=-1)
    stage: int = key(1, "pipeline stages, each with its share of the layers", at_least=-1)
    dcn: AxesConfig = key(AxesConfig(), "how much of each axis spans slices; the rest is inside a slice")

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {a: getattr(self, a) for a in ("data", "fsdp", "tensor", "context", "expert", "stage")}
        if 0 in sizes.values():
            raise ConfigError(
                f"mesh.{next(a for a, n in sizes.items() if n == 0)}=0: a size is 1 or more, or -1 for the rest"
            )
        if list(sizes.values()).count(-1) > 1:
            raise ConfigError(f"mesh: only one axis may be -1, got {[a for a, n in sizes.items() if n == -1]}")

    @property
    def num_slices(self) -> int:
        """Parts of the devices between which the network is slow."""
        return math.prod(getattr(self.dcn, one.name) for one in fields(self.dcn))

    def size(self, axis: str) -> int:
        """Of an axis, inside slices and across them together; negative where it takes what is left."""
        return getattr(self, axis) * getattr(self.dcn, axis)

    def resolved(self, sizes: Mapping[str, int]) -> "MeshConfig":
        """The same with these sizes, inside slices and across them together."""
        return replace(self, **{axis: n // getattr(self.dcn, axis) for axis, n in sizes.items()})


class Best(Enum):
    """Which value of a metric is the best one."""

    lowest = 0
    highest = 1


@dataclass
class CheckpointConfig(Section):
    """What is saved, and how long it is kept."""

    section: ClassVar[str] = "checkpoint"

    save_every_steps: int = key(500, "steps between saves; 0 = only at the end", at_least=0)
    keep_last: int = key(2, "newest checkpoints kept", at_least=1)
    keep_best: int = key(1, "best checkpoints kept, by best_metric", at_least=0)
    best_metric: str = key("eval/loss", "figure of an evaluation that says which checkpoint is best")
    best: Best = key(Best.lowest, "whether its lowest or its highest value is the best")
    compress: bool = key(False, "zstd; saves about 7 % of a float32 state and doubles the time")
    verify: bool = key(True, "compare each file's CRC-32 with the manifest before restoring")


@dataclass
class TrackerConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    section: ClassVar[str] = "tracker"

    names: list[str] = key(["tensorboard"], "any of tensorboard, wandb, mlflow, trackio (the last three are extras)")
    project: str = key("lmkit", "project or experiment name shown by the tracker")


@dataclass
class VerifyConfig(Section):
    """One device against the mesh."""

    section: ClassVar[str] = "verify"

    real_devices: bool = key(False, "use the devices there are; false = pretend that the CPU is as many as are needed")
    topology: str = key(
        "", "a TPU slice, such as v5e:16x16: compile the full step for it and show what it sends, running nothing"
    )
