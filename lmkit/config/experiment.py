"""The whole tree: one `Experiment` is what every verb gets. Checks that need two sections live here."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lmkit.config.arithmetic.mesh import BATCH_AXES, axis_sizes, batch_shards
from lmkit.config.arithmetic.mesh_checks import check_axes, check_divides
from lmkit.config.base import ConfigError, key
from lmkit.config.sections.checkpoint import CheckpointConfig
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.evaluate import EvaluateConfig
from lmkit.config.sections.export import ExportConfig
from lmkit.config.sections.families import CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.generate import GenerateConfig
from lmkit.config.sections.hardware import HardwareConfig
from lmkit.config.sections.hosts import HostsConfig
from lmkit.config.sections.launch import LaunchConfig
from lmkit.config.sections.lora import LoraConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.model import ModelConfig, Position, TransformerConfig
from lmkit.config.sections.objective import ObjectiveConfig, ObjectiveKind
from lmkit.config.sections.optim import OptimConfig
from lmkit.config.sections.plan import PlanConfig
from lmkit.config.sections.prepare import PrepareConfig
from lmkit.config.sections.run import RunConfig
from lmkit.config.sections.serve import ServeConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.config.sections.tracker import TrackerConfig
from lmkit.config.sections.train import TrainConfig
from lmkit.config.sections.verify import VerifyConfig


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
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    init_from: str = key(
        "",
        "run, checkpoint, Hugging Face folder, hub://org/name[@revision] or .gguf file to take parameters from",
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
        check_axes(self.model, self.data, self.train, self.mesh)

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


def check_mesh(experiment: Experiment, num_devices: int) -> dict[str, int]:
    """The axes' sizes on so many devices. Raises ConfigError where mesh, batch or model do not fit them."""
    sizes = axis_sizes(experiment.mesh, num_devices)
    parts, train = batch_shards(sizes), experiment.train
    check_divides(
        "train.batch_size" + (" / train.accumulate_steps" if train.accumulate_steps > 1 else ""),
        train.batch_size // train.accumulate_steps, " x ".join(f"mesh.{axis}" for axis in BATCH_AXES), parts,
    )  # fmt: skip
    dataclasses.replace(experiment, mesh=experiment.mesh.resolved(sizes))  # checks the sizes that were -1
    return sizes
