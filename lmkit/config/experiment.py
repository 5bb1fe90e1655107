"""The whole tree: one `Experiment` is what every verb gets. Checks that need two sections live here."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lmkit.config.base import ConfigError, key
from lmkit.config.data import DataConfig, TokenizerConfig, TokenizerKind
from lmkit.config.families import CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.finetune import ExportConfig, LoraConfig
from lmkit.config.generation import GenerateConfig
from lmkit.config.hardware import HardwareConfig
from lmkit.config.model import ContextAttention, Kernel, ModelConfig, Position, TransformerConfig
from lmkit.config.plan import PlanConfig
from lmkit.config.sections import (
    CheckpointConfig,
    MeshConfig,
    ObjectiveConfig,
    ObjectiveKind,
    OptimConfig,
    RunConfig,
    TrackerConfig,
    TrainConfig,
    VerifyConfig,
)


@dataclass
class Experiment:
    """One experiment. Sections are Hydra groups of the same names; `run`, `train` and `generate` are plain keys."""

    run: RunConfig = field(default_factory=RunConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    init_from: str = key(
        "", "run, checkpoint, Hugging Face folder, hub id (org/name[@revision]) or .gguf file to take parameters from"
    )

    def __post_init__(self) -> None:
        optim, train = self.optim, self.train
        if self.objective.kind is ObjectiveKind.contrastive and train.accumulate_steps > 1:
            raise ConfigError(
                f"train.accumulate_steps={train.accumulate_steps} with objective.kind=contrastive: a micro-batch knows "
                f"fewer wrong answers, so the loss would change; set train.accumulate_steps=1"
            )
        if optim.warmup_steps >= train.steps > 1:
            raise ConfigError(
                f"optim.warmup_steps={optim.warmup_steps} leaves nothing of train.steps={train.steps}: "
                f"set optim.warmup_steps={train.steps // 10}"
            )
        self._check_lengths()
        if self.lora.rank and not self.init_from:
            raise ConfigError(
                f"lora.rank={self.lora.rank} without init_from: adapters need parameters to adapt; set init_from= to a "
                f"run or a Hugging Face folder, or lora.rank=0"
            )
        if self.tokenizer.kind is TokenizerKind.init and not self.init_from:
            raise ConfigError("tokenizer=init without init_from: set init_from=, or tokenizer=bpe, bytes or file")
        self._check_mesh()

    def _check_lengths(self) -> None:
        """Rows must not be longer than a learned table of positions."""
        model, data = self.model, self.data
        if isinstance(model, CLIPConfig):
            model = model.text
        if isinstance(model, ViTConfig) or not isinstance(model, TransformerConfig):
            return
        if self.objective.kind is ObjectiveKind.causal_lm and not isinstance(self.model, GPTConfig):
            return  # that they do not go together is said when they are to be trained
        source = model.source_len if isinstance(model, EncDecConfig) else model.max_seq_len
        lengths = [("data.seq_len", data.seq_len, source)]
        if isinstance(model, EncDecConfig) and self.objective.kind is ObjectiveKind.seq2seq:
            lengths.append(("data.target_len", data.target_size, model.max_seq_len))
        for name, length, places in lengths if model.position is Position.learned else ():
            if length > places:
                limit = "model.max_source_len" if places != model.max_seq_len else "model.max_seq_len"
                raise ConfigError(
                    f"{name}={length} is longer than the {places} positions of the model: "
                    f"set {name}={places} or {limit}={length}"
                )

    def _check_mesh(self) -> None:
        """What can be said of the mesh without knowing the devices; the rest is in parallel.mesh."""
        context = self.mesh.context * self.mesh.dcn.context
        if context > 1:
            self._check_context(context)
        tensor = self.mesh.tensor * self.mesh.dcn.tensor
        if tensor <= 1:
            return
        for prefix, part in self.model.parts().items():
            for name, size in (
                (f"{prefix}.num_heads", part.num_heads),
                (f"{prefix}.num_kv_heads", part.kv_heads),
                (f"{prefix}.mlp_dim", part.mlp_size),
                ("data.seq_len", self.data.seq_len),
            ):
                check_divides(name, size, "mesh.tensor", tensor)
            if part.vocab_size:
                check_divides(f"{prefix}.vocab_size", part.vocab_size, "mesh.tensor", tensor)

    def _check_context(self, context: int) -> None:
        """Sequences that `context` splits must be split evenly, and their attention must be one that can be."""
        tensor = max(self.mesh.tensor * self.mesh.dcn.tensor, 1)
        for prefix, part in self.model.parts().items():
            if isinstance(part, ViTConfig):
                check_divides(f"{prefix}: an image's places", part.num_places, "mesh.context", context)
                continue
            check_divides("data.seq_len", self.data.seq_len, "mesh.context", context)
            if isinstance(part, EncDecConfig):
                check_divides("data.target_len", self.data.target_size, "mesh.context", context)
        for prefix, part in self.model.parts().items():
            if part.context_attention is ContextAttention.ring:
                if part.attention in (Kernel.cudnn, Kernel.splash):
                    raise ConfigError(
                        f"{prefix}.attention={part.attention.name} with mesh.context={context}: the ring runs in xla; "
                        f"set {prefix}.context_attention=all_to_all, or {prefix}.attention=auto"
                    )
                continue
            check_divides(f"{prefix}.num_heads / mesh.tensor", part.num_heads // tensor, "mesh.context", context)
            keys = max(part.kv_heads // tensor, 1)
            if keys % context and context % keys:
                raise ConfigError(
                    f"{prefix}.context_attention=all_to_all: {keys} key heads a device of mesh.tensor cannot be dealt "
                    f"out to mesh.context={context}: one must divide the other; set {prefix}.context_attention=ring"
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


def to_plain(config: Any) -> Any:
    """A configuration as plain dicts, lists and names, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {k: to_plain(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(v) for v in config]
    return getattr(config, "name", config)


def differing(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """The keys in which two plain configurations differ, as (dotted name, old value, new value)."""
    if isinstance(old, dict) and isinstance(new, dict):
        rows = []
        for name in sorted({*old, *new}):
            rows += differing(old.get(name, "(absent)"), new.get(name, "(absent)"), f"{prefix}{name}.")
        return rows
    return [] if old == new else [(prefix.rstrip("."), old, new)]
