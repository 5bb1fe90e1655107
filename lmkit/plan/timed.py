"""The step's time by the compiler beside the arithmetic's: where it goes, and the floors under it."""

from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from lmkit.compiler.steptime import ERROR, step_timeline
from lmkit.compiler.timeline import COPY, KERNEL, NETWORK, OTHER, PRODUCT, Operation, Timeline
from lmkit.cost.context import PlanContext
from lmkit.cost.estimate import Estimate
from lmkit.cost.work import flops_by_part, memory_traffic

_DEAREST = 10
_KINDS = {PRODUCT: "matrix products", KERNEL: "kernels", OTHER: "other operations", COPY: "copies",
          NETWORK: "collectives"}  # fmt: skip
_SLOW_MEMORY = ("gpu",)  # platforms whose text says what every kernel reads and writes


class Timed(NamedTuple):
    """A step of the compiled program; seconds, of one device."""

    timeline: Timeline
    mfu: float
    compute_floor: float  # the model's FLOPs at the peak
    bandwidth_floor: float  # the least bytes between a device and its memory, at its bandwidth
    floor_bytes: float
    platform: str

    @property
    def dearest(self) -> list[Operation]:
        """The operations that take longest."""
        return self.timeline.operations[:_DEAREST]

    @property
    def launches(self) -> int:
        """Kernels; 0 on a TPU."""
        return sum(one.launches for one in self.timeline.operations)

    @property
    def moved_bytes(self) -> float:
        """What kernels read and write; 0 on a TPU, whose text does not say it of everything."""
        if self.platform not in _SLOW_MEMORY:
            return 0.0
        return sum(one.num_bytes for one in self.timeline.operations if one.kind != NETWORK)

    @property
    def libraries(self) -> dict[str, int]:
        """By what matrix products and attention run, and how often."""
        found: dict[str, int] = {}
        for one in self.timeline.operations:
            if one.kind in (PRODUCT, KERNEL) and one.label:
                found[one.label] = found.get(one.label, 0) + one.times
        return found


def timed_of(context: PlanContext, text: str) -> Timed | None:
    """A step of the program that was compiled of a plan; None on a CPU, whose compiler says nothing of time."""
    experiment, hardware = context.experiment, context.experiment.hardware
    if hardware.platform not in ERROR:
        return None
    found = step_timeline(text, hardware, experiment.mesh, context.sizes, experiment.plan.network_share)
    peak = 1e12 * (hardware.bf16_tflops if context.itemsize == 2 else hardware.fp32_tflops or hardware.bf16_tflops)
    floor = sum(flops_by_part(context).values()) / context.num_devices / peak
    moved = sum(memory_traffic(context).values())
    return Timed(
        found, floor / found.seconds if found.seconds else 0.0, floor, moved / (hardware.memory_gb_per_sec * 1e9),
        moved, hardware.platform,
    )  # fmt: skip


def show_timed(console: Console, found: Estimate, timed: Timed) -> None:
    """The time by kinds of operations and its floors, then the dearest operations."""
    step = timed.timeline
    table = Table(title="[bold]a step, by the compiler", title_justify="left", box=None)
    for name, justify in (("", "left"), ("s", "right"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for kind, name in _KINDS.items():
        waited = f"{step.waited.get(kind, 0.0):.4f} waited for, the rest beside others" * (kind in (COPY, NETWORK))
        if seconds := step.busy(kind):
            table.add_row(name, f"{seconds:.4f}", waited)
    table.add_row("together", f"{step.seconds:.4f}", f"MFU {timed.mfu:.1%}; {step.product_share:.1%} matrix products")
    table.add_row("by arithmetic", f"{found.step.total:.4f}", f"MFU {found.mfu:.1%}")
    table.add_row("floor, compute", f"{timed.compute_floor:.4f}", "the model's FLOPs at the peak")
    table.add_row("floor, bandwidth", f"{timed.bandwidth_floor:.4f}", f"{timed.floor_bytes / 1e9:.1f} GB")
    console.print(table)
    if timed.launches:
        ratio = timed.moved_bytes / timed.floor_bytes
        console.print(
            f"{timed.launches:,} kernels, {timed.moved_bytes / 1e9:.1f} GB read and written, {ratio:.2f} of the floor"
        )
    if timed.libraries:
        console.print("products and attention: " + ", ".join(f"{n} x {name}" for name, n in timed.libraries.items()))
    if step.unknown_loops:
        console.print(f"counted once, as the text does not say how often they run: {', '.join(step.unknown_loops)}")
    console.print(f"{ERROR[timed.platform]}\n", style="dim", soft_wrap=True)
    table = Table(title="[bold]dearest operations", title_justify="left", box=None)
    for name, justify in (("ms", "right"), ("times", "right"), ("kind", "left"), ("line", "left"), ("where", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for one in timed.dearest:
        table.add_row(f"{one.seconds * 1e3:.2f}", f"{one.times:,}", one.label or one.kind, one.place, one.source)
    console.print(table)
    console.print()


def plain_timed(timed: Timed) -> dict[str, Any]:
    """Every figure, for JSON."""
    step = timed.timeline
    return {
        "seconds": step.seconds, "mfu": timed.mfu, "product_share": step.product_share, "waited_sec": step.waited,
        "busy_sec": {kind: step.busy(kind) for kind in _KINDS if step.busy(kind)},
        "compute_floor_sec": timed.compute_floor, "bandwidth_floor_sec": timed.bandwidth_floor,
        "kernels": timed.launches, "moved_bytes": timed.moved_bytes, "floor_bytes": timed.floor_bytes,
        "libraries": timed.libraries, "unknown_loops": step.unknown_loops, "error": ERROR[timed.platform],
        "dearest": [one._asdict() for one in timed.dearest],
    }  # fmt: skip
