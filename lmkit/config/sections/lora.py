"""`lora`: low-rank adapters."""

from dataclasses import dataclass
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


@dataclass
class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021): y = x W + alpha / rank (x A) B, and only A and B train."""

    section: ClassVar[str] = "lora"

    rank: int = key(0, "rank of the adapters; 0 = off: all parameters train", at_least=0)
    alpha: float = key(16.0, "the adapters' part is scaled by alpha / rank", at_least=0.0)
    targets: list[str] = key(["*.attention.q", "*.attention.v"], "patterns of linear layers that get adapters")
    train: list[str] = key([], "patterns of parameters that train beside them, such as a fresh head")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train and not self.rank:
            raise ConfigError(
                f"lora.train={self.train} with lora.rank=0: without adapters all parameters train; set lora.rank=8, "
                f"or name what shall not train with optim.freeze"
            )
        if self.rank and not self.targets:
            raise ConfigError(f"lora.targets=[] with lora.rank={self.rank}: name linear layers, or set lora.rank=0")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 0.0
