"""The plan, for people and for programs."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from lmkit.compiler.collectives import total
from lmkit.config.sections.plan import FACTORS
from lmkit.core.state import local_bytes
from lmkit.cost.collectives import show_traffic
from lmkit.cost.estimate import Estimate
from lmkit.cost.memory import ALWAYS
from lmkit.cost.traffic import traffic_of
from lmkit.plan.advice import Advice
from lmkit.plan.compiled import Compiled
from lmkit.plan.search import Found, Search
from lmkit.plan.timed import plain_timed, show_timed

_GIB = 2**30
_SHOWN = 10  # of what a search found


def show(console: Console, found: Estimate, changes: list[Advice], compiled: Compiled | None = None) -> None:
    """The verdict, then how it comes about."""
    experiment, context = found.context.experiment, found.context
    hardware = experiment.hardware
    axes = " x ".join(f"{axis}={n}" for axis, n in context.sizes.items() if n > 1) or "one device"
    sides = f" ({'x'.join(map(str, context.sides))} chips)" if context.sides else ""
    room = f" of {found.limit / _GIB:.1f} that it may take" if found.limit else "; the device's memory is not known"
    peak, fits, who = found.memory.peak, found.fits, ", by arithmetic"
    if compiled is not None:
        peak, fits, who = compiled.peak, compiled.fits(found.limit), ", by the compiler"
    verdict = "[bold green]fits[/]" if fits else "[bold red]does not fit[/]"
    console.print(f"{verdict}: {peak / _GIB:.2f} GiB a device{room}{who}", soft_wrap=True)
    console.print(
        f"{experiment.run.name}, {found.context.blueprint.num_params:,} parameters, on {context.num_devices} x "
        f"{hardware.name}{sides}, {axes}",
        soft_wrap=True,
    )
    where = (
        found.calibration
        or "shares of peaks and the overhead are those of published runs, assumed or set by hand: see plan.calibrate"
    )
    console.print(f"{where}\n", soft_wrap=True, markup=False)
    if compiled is not None:
        _show_compiled(console, found, compiled)
    if not fits:
        _show_advice(console, changes)
    _show_memory(console, found)
    _show_time(console, found)
    _show_run(console, found)


def show_search(console: Console, found: Search) -> None:
    """The best ways to run, one a line, and the first as words for a command line."""
    console.print(f"{found.tried:,} ways over {found.meshes} meshes tried by arithmetic, {len(found.best):,} fit")
    if not found.best:
        near, context = found.closest, found.closest.context
        keys = " ".join(f"{key}={value}" for key, value in Found(near).keys.items() if value != "1")
        console.print(
            f"[bold red]nothing fits[/]: the least is {near.memory.peak / _GIB:.2f} GiB a device of "
            f"{near.limit / _GIB:.1f}, with {keys}; take more than {context.num_devices} devices, or a smaller "
            f"train.batch_size",
            soft_wrap=True,
        )
        return
    rows = []
    for one in found.best[:_SHOWN]:
        context, gib = one.estimate.context, f"{one.estimate.memory.peak / _GIB:.2f}"
        seconds = f"{one.estimate.step.total:.3f}"
        if one.compiled is not None:
            gib += f" ({one.compiled.peak / _GIB:.2f} compiled)"
            seconds += f" ({one.compiled.timed.timeline.seconds:.3f} compiled)" if one.compiled.timed else ""
        (remat, *_) = {part.remat.name for part in context.experiment.model.towers().values()}
        axes = " x ".join(f"{axis}={n}" for axis, n in context.sizes.items() if n > 1) or "one device"
        micro = str(context.experiment.train.accumulate_steps)
        rows.append((
            axes, remat, micro, gib, seconds, f"{one.estimate.tokens_per_sec:,.0f}",
            f"{one.estimate.mfu:.1%}", one.estimate.step.bound,
        ))  # fmt: skip
    names = ("mesh", "remat", "micro-batches", "GiB a device", "s a step", "speed, tokens/s", "share, MFU", "bound by")
    _table(console, "the best", names, rows)
    console.print(" ".join(f"{key}={value}" for key, value in found.best[0].keys.items()) + "\n", soft_wrap=True)


def _show_compiled(console: Console, found: Estimate, compiled: Compiled) -> None:
    """The compiler's figures beside those of arithmetic, the largest arrays, and what is sent."""
    context = found.context
    console.print(f"compiled in {compiled.seconds:.0f} s; nothing was run", style="dim")
    if compiled.refusal:
        console.print(f"the compiler: {compiled.refusal}", soft_wrap=True, markup=False)
    state = local_bytes(context.blueprint.shapes)
    rows = [
        ("the state and a batch", compiled.arguments, state, "arguments of the step"),
        ("temporaries", compiled.temporary, found.memory.peak - state, "activations, gradients, buffers"),
        ("peak", compiled.peak, found.memory.peak, "all that is there at once"),
        ("host", compiled.host, 0.0, "what model.remat=offload keeps there"),
    ]
    _table(console, "memory of a device, by the compiler", ("", "GiB", "GiB by arithmetic", ""), [
        (name, f"{size / _GIB:.2f}" if size else "not told", f"{asked / _GIB:.2f}", why)
        for name, size, asked, why in rows if size or asked
    ])  # fmt: skip
    if compiled.options:
        console.print(compiled.options, soft_wrap=True)
    if compiled.timed is not None:
        show_timed(console, found, compiled.timed)
    if compiled.arrays:
        rows = [(f"{one.size / _GIB:.2f}", one.array, one.source) for one in compiled.arrays]
        _table(console, "largest arrays that the program makes", ("GiB", "array", "where"), rows)
    if compiled.sent:
        least = traffic_of(context.experiment, context.blueprint, context.itemsize)
        show_traffic(console, "collectives of a step, a device", compiled.sent, least, "MiB")
        if context.experiment.mesh.num_slices > 1:
            console.print("between slices hosts send and receive: that is in none of the compiler's collectives")
        console.print()


def _show_advice(console: Console, changes: list[Advice]) -> None:
    rows = [
        (row.keys, f"{row.saved / _GIB:.2f}", f"{row.peak / _GIB:.2f}", "fits" if row.fits else "", f"{row.step:.2f}")
        for row in changes[:8]
    ]
    _table(console, "what would help", ("one change", "GiB saved", "GiB then", "", "s a step"), rows)
    if not any(row.fits for row in changes):
        console.print("none of these is enough alone: combine them, or take more devices\n")


def _show_memory(console: Console, found: Estimate) -> None:
    memory = found.memory
    rows = []
    for item in sorted(memory.items, key=lambda one: -one.size):
        counted = item.when in (ALWAYS, memory.narrow)
        note = item.why if counted else f"{item.why}; only {item.when}, so not in the sum"
        size = f"{item.size / _GIB:.2f}" if counted else f"({item.size / _GIB:.2f})"
        rows.append((item.name, size, note))
    rows.append(("together", f"{memory.peak / _GIB:.2f}", f"the most is needed {memory.narrow}"))
    rows.append(("at the start", f"{memory.start / _GIB:.2f}", "while the state is made, or read from init_from"))
    _table(console, "memory of a device", ("", "GiB", ""), rows)
    host, room = memory.host_bytes / _GIB, found.context.experiment.hardware.host_memory_gib
    limit = f" of {room:,.0f}" if room else ""
    warning = "" if found.fits_host else ": [bold red]more than it has[/]"
    console.print(f"a host needs {host:,.1f} GiB{limit} while it saves{warning}\n")


def _show_time(console: Console, found: Estimate) -> None:
    step, plan = found.step, found.context.experiment.plan
    total = sum(found.flops.values())
    tokens = found.context.tokens_per_step
    rows = [(name, f"{flops / tokens / 1e9:,.3f}", f"{flops / total:.1%}")
            for name, flops in sorted(found.flops.items(), key=lambda item: -item[1])]  # fmt: skip
    rows += [("together", f"{total / tokens / 1e9:,.3f}", "")]
    rows += [("computed again", f"{found.repeated / tokens / 1e9:,.3f}", f"{found.repeated / total:.1%}")]
    if found.update:
        rows += [("optimiser", f"{found.update / tokens / 1e9:,.3f}", f"{found.update / total:.1%}")]
    _table(console, "FLOPs of a token, forward and backward", ("part", "GFLOP", "share"), rows)
    waiting = f", {step.bubble:.1%} of the layers' time in the pipeline's bubble" if step.bubble else ""
    rate = plan.compute_share * (found.context.experiment.hardware.matrix_share or 1.0)
    rows = [("computing", "", "", f"{step.compute:.3f}", f"at {rate:.0%} of the peak{waiting}")]
    moved = sum(found.memory_traffic.values())
    rows += [
        ("memory", "", f"{moved / _GIB:,.1f}", f"{step.memory:.3f}", f"at {plan.memory_share:.0%} of its bandwidth")
    ]
    for one in step.sent:
        known = f"{one.seconds:.3f}" if one.network.bytes_per_sec else "not known"
        how = f"{plan.exposed_share:.0%} not hidden" if one.overlapped else "waited for"
        how += f", at {plan.network_share:.0%} of {one.network.bytes_per_sec / 1e9:,.0f} GB/s"
        rows.append((" x ".join(one.axes), one.network.name, f"{one.sent_bytes / _GIB:,.2f}", known, how))
    _table(console, "a step", ("", "network", "GiB", "s", ""), rows)
    console.print(
        f"{step.total:.3f} s a step, bound by {step.bound}: computing ({step.compute:.3f}), memory ({step.memory:.3f})"
        f", what is sent and not hidden behind them ({step.exposed:.3f}), what is waited for ({step.waited:.3f}) and "
        f"an overhead ({step.overhead:.3g})\n",
        soft_wrap=True,
    )


def _show_run(console: Console, found: Estimate) -> None:
    run, plan, hardware = found.run, found.context.experiment.plan, found.context.experiment.hardware
    usd = f"{run.usd:,.0f} USD, at {hardware.price_usd_per_hour:g} an hour ({hardware.price_source})"
    kwh = f"{run.kwh:,.0f} kWh, at {hardware.power_watts:g} W a device and a PUE of {plan.pue:g}"
    co2 = f"{run.co2_kg:,.0f} kg, at {plan.co2_g_per_kwh:g} g a kWh (plan.co2_g_per_kwh)"
    optimal = found.optimal_tokens
    speed = found.tokens_per_sec
    rows = [
        ("speed", f"{speed:,.0f} tokens/s, {speed / found.context.num_devices:,.0f} a device"),
        ("MFU", f"{found.mfu:.1%}"),
        ("tokens", f"{run.tokens / 1e9:,.2f} billion"),
        ("time", f"{run.days:,.1f} days"),
        ("cost", usd if run.usd else "the price is not known: hardware.price_usd_per_hour"),
        ("energy", kwh if run.kwh else "the power is not known: hardware.power_watts"),
        ("CO2", co2 if run.kwh else "not known"),
        ("hint", f"{optimal / 1e9:,.1f} billion tokens are the best use of their FLOPs at this size (Hoffmann et al. "
                 f"2022: 20 a parameter); this is {run.tokens / optimal:.2f} of that"),
    ]  # fmt: skip
    _table(console, "the run", ("", ""), rows)


def _table(console: Console, title: str, names: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(title=f"[bold]{title}", title_justify="left", box=None)
    for name in names:
        table.add_column(name, justify="right" if name.startswith(("GiB", "GFLOP", "share", "s")) else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()


def as_plain(found: Estimate, changes: list[Advice], compiled: Compiled | None = None) -> dict[str, Any]:
    """Every figure of the plan, for JSON; sizes in bytes, times in seconds unless their names say otherwise."""
    memory, step = found.memory, found.step
    return {
        "name": found.context.experiment.run.name,
        "hardware": found.context.experiment.hardware.name,
        "devices": found.context.num_devices,
        "mesh": found.context.sizes,
        "params": found.context.blueprint.num_params,
        "fits": found.fits,
        "memory": {
            "peak_bytes": memory.peak, "start_bytes": memory.start, "limit_bytes": found.limit, "narrow": memory.narrow,
            "host_bytes": memory.host_bytes, "items": [item._asdict() for item in memory.items],
        },
        "flops_per_step": found.flops,
        "repeated_flops_per_step": found.repeated,
        "update_flops_per_step": found.update,
        "shares": {name: getattr(found.context.experiment.plan, name) for name in FACTORS},
        "calibration": asdict(found.calibration) if found.calibration else None,
        "memory_traffic_bytes": found.memory_traffic,
        "step": {
            "total_sec": step.total, "compute_sec": step.compute, "bubble": step.bubble, "memory_sec": step.memory,
            "bound": step.bound, "overlapped_sec": step.overlapped, "exposed_sec": step.exposed,
            "waited_sec": step.waited, "overhead_sec": step.overhead,
            "sent": [one._asdict() | {"network": one.network._asdict()} for one in step.sent],
        },
        "tokens_per_sec": found.tokens_per_sec,
        "mfu": found.mfu,
        "run": found.run._asdict(),
        "optimal_tokens": found.optimal_tokens,
        "advice": [row._asdict() for row in changes],
        "compiled": compiled and {
            "seconds": compiled.seconds, "peak_bytes": compiled.peak, "argument_bytes": compiled.arguments,
            "temporary_bytes": compiled.temporary, "host_bytes": compiled.host, "refusal": compiled.refusal,
            "fits": compiled.fits(found.limit), "step": compiled.timed and plain_timed(compiled.timed),
            "options": compiled.options, "arrays": [one._asdict() for one in compiled.arrays],
            "sent": [{"axes": axes, "kind": kind} | sums._asdict()
                     for (axes, kind), sums in total(compiled.sent, "axes", "kind").items()],
        },
    }  # fmt: skip
