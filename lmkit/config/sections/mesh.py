"""`mesh`: how devices are arranged."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


@dataclass
class AxesConfig(Section):
    """Sizes across slices (DCN) or nodes of a split axis."""

    section: ClassVar[str] = "mesh.dcn"
    changes_results: ClassVar[bool] = False

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
    changes_results: ClassVar[bool] = False

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
