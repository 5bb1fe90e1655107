"""The plan: memory, time, money, by arithmetic alone.

A step takes the sum of computing, of moving memory, of what is sent over data, fsdp, context and stage and not hidden
behind the first two, and of what is waited for: what is sent over tensor and expert. Computing and memory add up:
products wait for elementwise operations, and a product of 4,096 x 4,096 x 256 takes on an H100 as long as its FLOPs at
the rate of 4,096 cubed and its bytes one after the other (22 us; OpenXLA, xla/service/gpu/model/
matmul_interpolator_data.h). Products run at hardware.matrix_share of the peak times plan.compute_share, memory and
networks at plan.memory_share and plan.network_share of their bandwidth; plan.exposed_share says how much of what is
sent is not hidden, and plan.step_overhead_sec comes on top.
"""

import dataclasses
from typing import NamedTuple

from lmkit.config.arithmetic.pipeline import pipes_of
from lmkit.config.calibration import Calibration
from lmkit.config.experiment import Experiment
from lmkit.core.state import Blueprint
from lmkit.cost.context import PlanContext, make_context
from lmkit.cost.memory import Memory, memory_of
from lmkit.cost.network import Sent, times_of
from lmkit.cost.settle import settle
from lmkit.cost.traffic import traffic_of
from lmkit.cost.work import (
    OUTSIDE,
    flops_by_part,
    memory_traffic,
    repeated_flops,
    scores_traffic,
    timed_flops,
    update_flops,
)
from lmkit.nn.tree import flat

_TOKENS_A_PARAMETER = 20  # Hoffmann et al. 2022, section 3: the least loss for given FLOPs (approach 1, rounded)
_HOUR, _DAY = 3600.0, 86400.0


class Step(NamedTuple):
    """The time of a step, in seconds."""

    compute: float
    bubble: float  # share of the time in the layers in which a pipeline's stage has nothing to do
    memory: float
    sent: list[Sent]
    overhead: float = 0.0
    exposed_share: float = 1.0  # of what is sent beside the rest: how much is not hidden

    @property
    def overlapped(self) -> float:
        """What is sent beside the rest, alone."""
        return sum(one.seconds for one in self.sent if one.overlapped)

    @property
    def exposed(self) -> float:
        """So much of it the step takes longer."""
        return exposed(self.overlapped, self.compute + self.memory, self.exposed_share)

    @property
    def waited(self) -> float:
        """What is sent while nothing else can be done."""
        return sum(one.seconds for one in self.sent if not one.overlapped)

    @property
    def total(self) -> float:
        return self.compute + self.memory + self.exposed + self.waited + self.overhead

    @property
    def bound(self) -> str:
        """What takes most of the step."""
        times = {
            "computing": self.compute, "memory": self.memory, "the network": self.exposed + self.waited,
            "its overhead": self.overhead,
        }  # fmt: skip
        return max(times, key=lambda name: times[name])


def exposed(overlapped: float, busy: float, share: float) -> float:
    """Seconds that a step takes longer for what is sent beside it: a share, or all that is longer than the rest."""
    return max(share * overlapped, overlapped - busy)


class RunCost(NamedTuple):
    """The whole run."""

    tokens: float
    days: float
    usd: float  # 0 = the price is not known
    kwh: float  # 0 = the power is not known
    co2_kg: float


class Estimate(NamedTuple):
    """Everything a plan tells."""

    context: PlanContext
    memory: Memory
    limit: float  # bytes of a device that the step may take; 0 = not known
    flops: dict[str, float]  # of a step, by part
    repeated: float  # what is computed again, in a step
    memory_traffic: dict[str, float]  # bytes, a device and step
    step: Step
    mfu: float  # FLOPs of the model over what the devices could do in the time of a step
    run: RunCost
    update: float = 0.0  # FLOPs of the optimiser's own matrix products, in a step over all devices
    calibration: Calibration | None = None  # where the factors are from, if not assumed or set

    @property
    def fits(self) -> bool:
        return self.limit == 0 or self.memory.peak <= self.limit

    @property
    def fits_host(self) -> bool:
        room = self.context.experiment.hardware.host_memory_gib * 2**30
        return room == 0 or self.memory.host_bytes <= room

    @property
    def tokens_per_sec(self) -> float:
        return self.context.tokens_per_step / self.step.total if self.step.total else 0.0

    @property
    def active_params(self) -> float:
        """Parameters that a token meets: of experts, those that it goes to."""
        parts, blueprint = self.context.experiment.model.towers(), self.context.blueprint
        shares = [part.experts_per_token / part.num_experts for part in parts.values() if part.num_experts]
        experts = sum(size for size in expert_sizes(self.context)) if shares else 0
        return blueprint.num_params - experts * (1 - (shares[0] if shares else 1))

    @property
    def optimal_tokens(self) -> float:
        """Tokens that make best use of the FLOPs they take (Hoffmann et al. 2022)."""
        return _TOKENS_A_PARAMETER * self.active_params


def expert_sizes(context: PlanContext) -> list[int]:
    """Elements of every matrix of the experts."""
    shapes, specs = context.blueprint.param_shapes, context.blueprint.specs
    return [leaf.size for path, leaf in flat(shapes).items() if "expert" in flat(specs)[path].dims[:2]]


def estimate(experiment: Experiment, blueprint: Blueprint | None = None) -> Estimate:
    """Raises ConfigError as make_context does, whose arguments they are."""
    context = make_context(experiment, blueprint)
    plan, hardware, calibration = settle(experiment.plan, context.experiment.hardware, context.num_devices)
    context = context._replace(experiment=dataclasses.replace(context.experiment, plan=plan, hardware=hardware))
    train, flops = experiment.train, flops_by_part(context)
    traffic = memory_traffic(context) | scores_traffic(context, flops)
    repeated, update = repeated_flops(context, flops), update_flops(context)
    timed = timed_flops(context, flops)
    peak = 1e12 * (hardware.bf16_tflops if context.itemsize == 2 else hardware.fp32_tflops) * context.num_devices
    least = traffic_of(context.experiment, context.blueprint, context.itemsize)
    sent = times_of(hardware, context.experiment.mesh, context.sizes, context.sides, least, plan.network_share)
    bandwidth = hardware.memory_gb_per_sec * 1e9 * plan.memory_share
    rate = peak * (hardware.matrix_share or 1.0) * plan.compute_share
    bubble = max(
        (pipe.bubble for pipe in pipes_of(context.experiment.model, train, context.sizes).values()), default=0.0
    )
    outside = sum(timed.get(name, 0.0) for name in OUTSIDE)
    work = outside + update + (sum(timed.values()) - outside + repeated_flops(context, timed)) / (1 - bubble)
    step = Step(
        work / rate if rate else 0.0, bubble, sum(traffic.values()) / bandwidth if bandwidth else 0.0, sent,
        plan.step_overhead_sec, plan.exposed_share,
    )  # fmt: skip
    mfu = sum(flops.values()) / (peak * step.total) if peak else 0.0
    seconds = step.total * (plan.tokens / context.tokens_per_step if plan.tokens else train.steps)
    hours = seconds / _HOUR * context.num_devices
    kwh = hours * hardware.power_watts / 1e3 * plan.pue
    run = RunCost(
        plan.tokens or float(train.steps * context.tokens_per_step), seconds / _DAY,
        hours * hardware.price_usd_per_hour, kwh, kwh * plan.co2_g_per_kwh / 1e3,
    )  # fmt: skip
    limit = hardware.memory_gib * 2**30 * plan.usable_share
    return Estimate(context, memory_of(context), limit, flops, repeated, traffic, step, mfu, run, update, calibration)
