"""The two floors under a training step: what it must compute, and what it must move between a device and its memory.

Both are the plan's arithmetic (lmkit/cost/work.py). FLOPs are the model's own: what remat or attention's backward pass
computes again is not in them, as it is not in MFU. Bytes are the state read and written once, gradients, the weights
of each pass, and activations as a layer without remat keeps them, each written and read once a pass. Better fusion
than the plan assumes can go below the bytes; nothing goes below the FLOPs.
"""

import dataclasses
from typing import NamedTuple

from lmkit.config.experiment import Experiment
from lmkit.config.sections.hardware import HardwareConfig
from lmkit.cost.context import make_context
from lmkit.cost.work import flops_by_part, memory_traffic, repeated_flops


class Floors(NamedTuple):
    """Of a step, over all devices."""

    flops: float
    num_bytes: float
    repeated: float  # FLOPs computed again

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.num_bytes


class Limits(NamedTuple):
    """What a run measured of its machine."""

    flops_per_sec: float  # of a matrix product in the compute dtype
    bytes_per_sec: float

    def seconds(self, floors: Floors) -> tuple[float, float]:
        """For the FLOPs alone, and for the bytes alone."""
        return floors.flops / self.flops_per_sec, floors.num_bytes / self.bytes_per_sec

    def attainable(self, intensity: float) -> float:
        """FLOP/s under both roofs (Williams et al. 2009)."""
        return min(self.flops_per_sec, intensity * self.bytes_per_sec)


def floors_of(experiment: Experiment, platform: str = "cpu", devices: int = 1) -> Floors:
    """The floors of an experiment's step. It looks at no device."""
    here = dataclasses.replace(experiment, hardware=HardwareConfig(name="here", platform=platform, devices=devices))
    context = make_context(here)
    parts = flops_by_part(context)
    moved = sum(memory_traffic(context).values()) * context.num_devices
    return Floors(sum(parts.values()), moved, repeated_flops(context, parts))
