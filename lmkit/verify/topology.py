"""The full step on a slice that is not here: what it sends. Nothing runs."""

from typing import Any

from rich.console import Console

from lmkit.compiler.collectives import Collective, collectives
from lmkit.compiler.topology import COUNTABLE, topology_devices
from lmkit.config.experiment import Experiment
from lmkit.core.aot import compile_step
from lmkit.core.setup import program_bytes
from lmkit.core.state import Blueprint
from lmkit.cost.collectives import show_traffic
from lmkit.cost.traffic import least_traffic
from lmkit.parallel.devices import setup_cpu


def compile_for(experiment: Experiment, name: str) -> tuple[Blueprint, Any, list[Collective]]:
    """On a slice such as v5e:16x16: the state's blueprint, the compiled step, and what it sends."""
    setup_cpu(experiment.run)
    blueprint, compiled = compile_step(experiment, topology_devices(name), COUNTABLE)
    return blueprint, compiled, collectives(compiled.as_text() or "", blueprint.mesh.shape)


def show_topology(console: Console, experiment: Experiment) -> int:
    """Compiles the full step for `verify.topology` and prints what it sends. Returns the exit status."""
    name = experiment.verify.topology
    blueprint, compiled, found = compile_for(experiment, name)
    axes = " x ".join(f"{axis}={n}" for axis, n in blueprint.mesh.shape.items() if n > 1)
    title = f"{experiment.run.name} on {name}, {axes}: collectives of a step, a device"
    show_traffic(console, title, found, least_traffic(experiment, blueprint), "MiB")
    peak = program_bytes(compiled.memory_analysis(), "tpu")
    console.print(f"peak memory {peak / 2**30:.2f} GiB a device, by the compiler; nothing was run")
    return 0
