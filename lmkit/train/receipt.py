"""What is known of a run before, while and after: the receipt, the header, the summary."""

import signal
from pathlib import Path
from typing import Any

import jax

from lmkit.config.arithmetic.pipeline import pipes_of
from lmkit.config.experiment import Experiment
from lmkit.config.sections.hardware import HardwareConfig, known_hardware
from lmkit.config.sections.model import Position
from lmkit.console import console, count, duration, header, size
from lmkit.core.environment import environment
from lmkit.core.evaluation import headline
from lmkit.core.setup import Programs
from lmkit.core.state import Blueprint
from lmkit.core.task import Task, trained_on
from lmkit.cost.flops import flops_per_row
from lmkit.cost.hardware import check_fits, matmul_flops, memory_now, peak_flops, peak_memory
from lmkit.data.store.tokens import TRAIN
from lmkit.nn.attend import choose_kernel
from lmkit.nn.forms import gpu_capability
from lmkit.nn.param import compute_dtype
from lmkit.train.meter import Meter
from lmkit.train.run_dir import RunDir

# Share of the peak that a first guess assumes: of a data sheet's peak, and of a matmul rate measured here.
_SHARE_OF_PEAK, _SHARE_OF_MEASURED = 0.4, 0.35


def describe(experiment: Experiment, blueprint: Blueprint, task: Task, run: RunDir, first: int) -> dict[str, Any]:
    """The receipt: everything that decides a run's numbers, and what is expected of it."""
    train, model = experiment.train, next(iter(blueprint.model_config.towers().values()))
    devices, dtype = blueprint.mesh.devices, compute_dtype(model.dtype)
    device = devices.flat[0]
    hardware = known_hardware(experiment.hardware, device.device_kind)
    peak = peak_flops(hardware, dtype) * devices.size
    speed = peak * _SHARE_OF_PEAK if peak else matmul_flops(dtype) * _SHARE_OF_MEASURED
    row = flops_per_row(task.model, blueprint.specs, task.source_len, task.target_len, task.predicted)
    flops = row / task.tokens_per_row
    tokens_per_step = train.batch_size * task.tokens_per_row
    kernel = choose_kernel(
        model.attention, backend=jax.default_backend(), dtype=dtype, head_size=model.head_size,
        seq_len=task.source_len, softcap=model.attention_softcap,
        bias=model.position is Position.relative, capability=gpu_capability(),
    )  # fmt: skip
    env = environment()
    session = {"started": env["started"], "step": first, "command": env["command"], "devices": int(devices.size)}
    history = [*run.read_json("receipt.json").get("history", []), session]
    return env | {
        "run": {
            "name": experiment.run.name,
            "dir": str(run.path),
            "started": env["started"],
            "seed": experiment.run.seed,
        },
        "devices": {
            "kind": device.device_kind,
            "count": int(devices.size),
            "hosts": jax.process_count(),
            "hardware": hardware.name if hardware else "not in the catalogue",
            "peak_flops": peak,
        },
        "mesh": {axis: int(n) for axis, n in blueprint.mesh.shape.items()},
        "pipeline": {
            prefix: pipe._asdict() | {"ticks": pipe.ticks, "bubble": pipe.bubble, "told": str(pipe)}
            for prefix, pipe in pipes_of(task.model, train, blueprint.mesh.shape).items()
        },
        "model": {
            "params": blueprint.num_params,
            "dtype": dtype.name,
            "attention": kernel.name,
            "flops_per_token": flops,
            "vocab_size": model.vocab_size,
            "tokens_per_row": task.tokens_per_row,
        },
        "data": task.facts,
        "expected": {
            "wall_sec": flops * tokens_per_step * (train.steps - first) / speed,
            "tokens_per_sec": speed / flops,
            "state_bytes": blueprint.state_bytes_per_device,
            "memory_bytes": 0,
        },
        "history": history,
    }


def add_compiled(receipt: dict[str, Any], config: HardwareConfig, programs: Programs) -> None:
    """What the compiler says the step needs, and what multiplies. Raises ConfigError where a known device has less."""
    expected, memory_bytes, with_onednn = receipt["expected"], programs.memory_bytes, programs.with_onednn
    expected["memory_bytes"] = memory_bytes
    if programs.options:
        receipt["devices"]["options"] = programs.why
    if receipt["devices"]["kind"] == "cpu":  # there the process holds it, beside the interpreter and the compiler
        expected["memory_bytes"] += memory_now()["memory/host_bytes"] - expected["state_bytes"]
        receipt["devices"]["products"] = "onednn" if with_onednn else "xla"
    check_fits(known_hardware(config, receipt["devices"]["kind"]), memory_bytes)
    library = ", products by oneDNN" if with_onednn else ""
    console.print(f"compiled the step: {size(memory_bytes)} a device at its peak{library}", style="dim")
    if programs.options:
        console.print(programs.why, style="dim", soft_wrap=True)


def show_header(experiment: Experiment, receipt: dict[str, Any], notes: list[str]) -> None:
    """Devices, mesh, parameters, tokens, memory and time expected."""
    train, expected, devices, model = experiment.train, receipt["expected"], receipt["devices"], receipt["model"]
    rows_seen = train.steps * train.batch_size
    tokens = rows_seen * model["tokens_per_row"]
    mesh = " x ".join(f"{axis}={n}" for axis, n in receipt["mesh"].items() if n > 1) or "one device"
    parts = [part[TRAIN] for part in receipt["data"].values()]
    vocabulary = f", vocabulary {model['vocab_size']:,} tokens" if model["vocab_size"] else ""
    if "records" in parts[0]:
        available = sum(part["records"] for part in parts)
        held = f"{available:,} records{vocabulary}"
        seen = f"{rows_seen:,} records in {train.steps:,} steps of {train.batch_size}"
        epochs = rows_seen / available
    else:
        available = sum(part["tokens"] for part in parts)
        held = f"{count(available)} tokens of {size(sum(part['bytes'] for part in parts))} text{vocabulary}"
        seen = f"{count(tokens)} tokens in {train.steps:,} steps of {train.batch_size} x {experiment.data.seq_len}"
        epochs = tokens / available
    hosts = f" on {devices['hosts']} hosts" if devices["hosts"] > 1 else ""
    rows = {
        "devices": f"{devices['count']} x {devices['kind']}{hosts}, {model['dtype']}, attention: {model['attention']}",
        "mesh": mesh,
        **{f"stages of {prefix}": pipe["told"] for prefix, pipe in receipt["pipeline"].items()},
        "parameters": f"{model['params']:,}",
        "data": held,
        **({"tokenizer": f"trained on {told}"} if (told := trained_on(receipt["data"])) else {}),
        "to see": f"{seen} ({epochs:.2f} epochs)",
        "memory": f"{size(expected['state_bytes'])} of parameters and optimiser state a device",
        "time": f"about {duration(expected['wall_sec'])} ({count(expected['tokens_per_sec'])} tokens/s expected)",
        "run": receipt["run"]["dir"],
    }
    header(receipt["run"]["name"], rows)
    for note in notes:
        console.print(note, style="yellow", markup=False)


def summary(
    latest: dict[str, float],
    receipt: dict[str, Any],
    meter: Meter,
    step: int,
    wall: float,
    stopped: signal.Signals | None,
) -> dict[str, Any]:
    """The final figures of a run."""
    rate, peak = meter.mean_rate(), receipt["devices"]["peak_flops"]
    kept = ("train/loss", "train/lost_rows")
    figures = {name: value for name, value in latest.items() if name in kept or name.startswith("eval/")}
    return figures | {
        "status": f"stopped by {stopped.name}" if stopped else "finished",
        "steps": step,
        "tokens": step * meter.tokens_per_step,
        "wall_sec": round(wall, 3),
        "tokens_per_sec": rate,
        **({"mfu": rate * receipt["model"]["flops_per_token"] / peak} if peak else {}),
        "peak_memory_bytes": peak_memory(),
    }


def show_end(folder: Path, report: Path, latest: dict[str, float], wall: float, resume: str) -> None:
    """Where everything is, and how to go on."""
    figures = f": {headline(latest)} held out" if "eval/loss" in latest else ""
    console.print(f"[bold]{'stopped' if resume else 'done'}[/] after {duration(wall)}{figures}")
    console.print(f"run     {folder}\nreport  {report}", soft_wrap=True)
    if resume:
        console.print(f"saved; resume with\n  {resume}", soft_wrap=True, markup=False)
