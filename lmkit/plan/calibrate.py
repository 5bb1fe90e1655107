"""`plan.calibrate=RUN_DIR`: what a run measured beside what its plan predicted, and factors that make them agree."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from lmkit.config.base import ConfigError
from lmkit.config.calibration import Calibration, write_calibration
from lmkit.config.experiment import Experiment
from lmkit.config.sections.plan import assumed
from lmkit.cost.settle import catalogue
from lmkit.cost.terms import Fit, Terms, fit

_OFF = 0.02  # of log time, by which a fit may miss


class Told(NamedTuple):
    """What a run's receipt has: what was planned and what was measured."""

    planned: dict[str, Any]
    measured: dict[str, Any]

    @property
    def terms(self) -> Terms:
        return Terms(**self.planned["terms"])

    @property
    def seconds(self) -> float:
        """Of a step: on the wall; where a CPU's run had one core, its CPU seconds, which no neighbour lengthens."""
        alone = self.planned["peaks"] and self.measured["cores"] == self.measured["processes"] == 1
        return self.measured["cpu_sec" if alone else "step_sec"]


def calibrate(experiment: Experiment, console: Console) -> Calibration:
    """Fits the factors to a run, writes the user's file, shows both. Raises ConfigError where a run tells nothing."""
    folder = Path(experiment.plan.calibrate).expanduser().absolute()
    told = read_run(folder)
    name, asked = told.planned["hardware"], experiment.hardware.name
    if asked not in ("auto", name):
        raise ConfigError(
            f"hardware={asked} with plan.calibrate={folder}: the run was on {name}; leave hardware out, or take a run "
            f"on {asked}"
        )
    found, fitted = calibration_of(told, folder)
    file = write_calibration(found)
    _show(console, told, fitted)
    shown = ", ".join(f"plan.{key}={value:.3g}" for key, value in found.factors.items())
    peaks = "".join(f", hardware.{key}={value:.3g} of the machine" for key, value in found.peaks.items())
    console.print(f"plans for hardware={name} take {shown}{peaks}\n{file}", soft_wrap=True, markup=False)
    return found


def read_run(folder: Path) -> Told:
    """Raises ConfigError where there is no run, it has not ended, or it has nothing to compare."""
    what = f"plan.calibrate={folder}"
    if not (folder / "receipt.json").is_file():
        raise ConfigError(f"{what}: no run is there (it has no receipt.json); give the directory of a run")
    if not (folder / "summary.json").is_file():
        raise ConfigError(
            f"{what}: the run is under way or broke off (it has no summary.json): wait, or resume it with run.dir=, "
            f"then calibrate"
        )
    try:
        receipt = json.loads((folder / "receipt.json").read_text())
        planned, measured = receipt.get("planned"), receipt.get("measured")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{what}: its receipt.json cannot be read ({error}); take another run") from error
    if not planned or not measured:
        raise ConfigError(f"{what}: its receipt has nothing planned and measured; run it again with this version")
    for which, part in (("planned", planned), ("measured", measured)):
        if "reason" in part:
            raise ConfigError(f"{what}: the run's step was not {which} ({part['reason']}); take another run")
    if set(planned["terms"]) != set(Terms._fields):
        raise ConfigError(f"{what}: another version planned the run, by other terms; run it again with this version")
    return Told(planned, measured)


def calibration_of(told: Told, folder: Path) -> tuple[Calibration, Fit]:
    """What a run teaches: factors, from those assumed on. Raises ConfigError where it was faster than the peaks allow.

    A CPU's peaks are what was measured on the machine for a moment, so there they are raised with a share above 1.
    """
    planned, seconds = told.planned, told.seconds
    peaks = planned["peaks"]
    start = assumed(catalogue(planned["hardware"]).get("platform", ""))
    found = fit(told.terms, start, seconds, capped=not peaks)
    reached = told.terms.total(found.factors)
    if abs(reached / seconds - 1) > _OFF:
        raise ConfigError(
            f"plan.calibrate={folder}: a step took {seconds:.4g} s, but with hardware={planned['hardware']} at its "
            f"peaks it takes {reached:.4g}: mend the figures of hardware.*, or take a run on what they are of"
        )
    factors = found.seen
    for name, value in list(factors.items()):
        peak = {"compute_share": "_tflops", "memory_share": "memory_gb_per_sec"}.get(name)
        key = next((key for key in peaks if peak and key.endswith(peak)), None)
        if value > 1 and key:
            peaks, factors = peaks | {key: peaks[key] * value}, factors | {name: 1.0}
    figures = {
        key: told.measured[key]
        for key in ("step_sec", "cpu_sec", "steps", "cores", "processes", "load", "memory_bytes")
    }
    before = {"planned_step_sec": planned["step_sec"], "planned_memory_bytes": planned["memory_bytes"]}
    return Calibration(
        planned["hardware"], str(folder), time.strftime("%Y-%m-%d %H:%M"), planned["device"],
        _rounded(factors), _rounded(peaks), figures | before | {"terms": planned["terms"]},
    ), found  # fmt: skip


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def _show(console: Console, told: Told, fitted: Fit) -> None:
    planned, measured, now = told.planned, told.measured, told.terms.total(fitted.factors)
    step = planned["step_sec"]
    table = Table(title=f"[bold]planned and measured, {planned['devices']} x {planned['hardware']}", box=None,
                  title_justify="left")  # fmt: skip
    for name in ("", "planned", "measured", "planned / measured", "calibrated"):
        table.add_column(name, justify="left" if not name else "right")
    told_rate, room = planned["tokens_per_sec"], planned["memory_bytes"] / 2**20
    rows: list[tuple[str, float, float, float, str]] = [
        ("s a step", step, measured["step_sec"], now, ".4g"),
        ("tokens/s", told_rate, measured["tokens_per_sec"], told_rate * step / now, ",.0f"),
        ("MiB a device", room, measured["memory_bytes"] / 2**20, room, ",.1f"),
    ]
    if told.seconds != measured["step_sec"]:
        rows.insert(0, ("CPU s a step", step, told.seconds, now, ".4g"))
    for name, before, seen, after, form in rows:
        table.add_row(name, f"{before:{form}}", f"{seen:{form}}", f"{before / seen:.2f}", f"{after:{form}}")
    console.print(table)
