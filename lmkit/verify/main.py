"""`lmkit.verify`, top to bottom."""

import dataclasses
import math

from rich.console import Console
from rich.table import Table

from lmkit.compiler.collectives import collectives
from lmkit.config.arithmetic.pipeline import pipes_of
from lmkit.config.base import ConfigError
from lmkit.config.checks import check_experiment
from lmkit.config.experiment import Experiment
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.objective import WITH_CLASSES, ObjectiveKind
from lmkit.core.inputs import make_inputs
from lmkit.cost.collectives import show_traffic
from lmkit.cost.traffic import least_traffic
from lmkit.parallel.devices import devices_here, setup_jax
from lmkit.parallel.mesh import AXES, axis_sizes, build_mesh
from lmkit.verify.compare import Row, compare, first_departing, run_step
from lmkit.verify.shrink import shrink
from lmkit.verify.topology import show_topology

console = Console(highlight=False)
_REST = 2  # devices that an axis of -1 takes where they are pretended


def verify(experiment: Experiment) -> int:
    """Runs the step on one device and on the mesh and prints how far they are apart. 0 where they agree, else 1."""
    check_experiment(experiment)
    if experiment.verify.topology:
        return show_topology(console, experiment)
    sizes = choose_devices(experiment)
    small = shrink(experiment, sizes)
    model = fit_heads(small)
    batch = make_inputs(small, model)
    mesh = build_mesh(experiment.mesh.resolved(sizes), devices_here()[: math.prod(sizes.values())])
    one = run_step(small, model, batch, build_mesh(MeshConfig(data=1), devices_here()[:1]))
    many = run_step(small, model, batch, mesh)
    rows = compare(one, many)
    show(experiment, sizes, rows)
    for prefix, pipe in pipes_of(model, small.train, sizes).items():
        console.print(f"{prefix}: {pipe}", soft_wrap=True)
    least = least_traffic(dataclasses.replace(small, model=model), many.blueprint)
    show_traffic(console, "collectives of this step, a device", collectives(many.program, mesh.shape), least, "KiB")
    if all(row.equal for row in rows):
        console.print("[bold green]equal[/]")
        return 0
    departing = first_departing(one, many)
    console.print(f"[bold red]different[/]{f': the first to depart is {departing}' if departing else ''}")
    return 1


def choose_devices(experiment: Experiment) -> dict[str, int]:
    """The sizes of the mesh: on the devices there are, or on as many CPU devices as it needs. Sets jax up."""
    if experiment.verify.real_devices:
        setup_jax(experiment.run)
        return axis_sizes(experiment.mesh, len(devices_here()))
    asked = {axis: experiment.mesh.size(axis) for axis in AXES}
    sizes = {axis: _REST if size < 0 else size for axis, size in asked.items()}
    needed = math.prod(sizes.values())
    if needed == 1:
        raise ConfigError("this mesh has one device, with nothing to compare: set mesh.data, mesh.fsdp or mesh.tensor")
    setup_jax(dataclasses.replace(experiment.run, cpu_devices=max(needed, experiment.run.cpu_devices)))
    return sizes


def fit_heads(experiment: Experiment):
    """The model with the classes that labels need."""
    model, kind = experiment.model, experiment.objective.kind
    if kind is ObjectiveKind.regress:
        return dataclasses.replace(model, num_classes=1)
    if kind in WITH_CLASSES and not model.num_classes:  # type: ignore
        return dataclasses.replace(model, num_classes=4)
    return model


def show(experiment: Experiment, sizes: dict[str, int], rows: list[Row]) -> None:
    """The table of differences."""
    axes = " x ".join(f"{axis}={n}" for axis, n in sizes.items() if n > 1)
    table = Table(title=f"[bold]{experiment.run.name}: one device and {axes}", title_justify="left", box=None)
    for name in ("largest relative difference", "found", "allowed", "verdict"):
        table.add_column(name)
    for row in rows:
        verdict = "equal" if row.equal else "[bold red]DIFFERENT"
        table.add_row(row.quantity, f"{row.difference:.1e}", f"{row.tolerance:.0e}", verdict)
    console.print(table)
    for row in rows:
        where = f"; the worst is {row.where}" if row.where else ""
        console.print(f"{row.quantity}: {row.reason}{where}", style="dim", soft_wrap=True)
