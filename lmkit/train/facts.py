"""What is known of a run before, while and after: the receipt, the header, the summary."""

import signal
from pathlib import Path
from typing import Any

import jax

from lmkit.config.experiment import Experiment
from lmkit.config.model import TransformerConfig
from lmkit.config.sections import HardwareConfig
from lmkit.data.prepare import Data
from lmkit.data.store import HELDOUT, TRAIN
from lmkit.nn.attend import choose_kernel
from lmkit.nn.param import compute_dtype
from lmkit.train.hardware import check_fits, flops_per_token, known_hardware, matmul_flops, peak_flops
from lmkit.train.progress import Meter, console, count, duration, header, memory_now, peak_memory, size
from lmkit.train.run_dir import RunDir, environment
from lmkit.train.state import Blueprint

# Share of the peak that a first guess assumes: of a data sheet's peak, and of a matmul rate measured here.
_SHARE_OF_PEAK, _SHARE_OF_MEASURED = 0.4, 0.35


def describe(experiment: Experiment, blueprint: Blueprint, data: Data, run: RunDir, first: int) -> dict[str, Any]:
    """The receipt: everything that decides a run's numbers, and what is expected of it."""
    model, train = blueprint.model_config, experiment.train
    assert isinstance(model, TransformerConfig)
    devices, dtype = blueprint.mesh.devices, compute_dtype(model.dtype)
    device = devices.flat[0]
    hardware = known_hardware(experiment.hardware, device.device_kind)
    peak = peak_flops(hardware, dtype) * devices.size
    speed = peak * _SHARE_OF_PEAK if peak else matmul_flops(dtype) * _SHARE_OF_MEASURED
    flops = flops_per_token(model, blueprint.num_params, experiment.data.seq_len)
    tokens_per_step = train.batch_size * experiment.data.seq_len
    kernel = choose_kernel(
        model.attention, backend=jax.default_backend(), dtype=dtype, head_size=model.head_size,
        seq_len=experiment.data.seq_len, softcap=model.attention_softcap,
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
        "model": {
            "params": blueprint.num_params,
            "dtype": dtype.name,
            "attention": kernel.name,
            "flops_per_token": flops,
            "vocab_size": model.vocab_size,
        },
        "data": {
            name: {
                "text_sha256": store.meta["text_sha256"],
                "tokenizer_sha256": store.meta["tokenizer_sha256"],
                "train": store.meta["splits"][TRAIN],
                "heldout": store.meta["splits"][HELDOUT],
            }
            for name, store in data.stores.items()
        },
        "expected": {
            "wall_sec": flops * tokens_per_step * (train.steps - first) / speed,
            "tokens_per_sec": speed / flops,
            "state_bytes": blueprint.state_bytes_per_device,
            "memory_bytes": 0,
        },
        "history": history,
    }


def add_compiled(receipt: dict[str, Any], config: HardwareConfig, memory_bytes: int) -> None:
    """What the compiler says the step needs. Raises ConfigError where a known device has less."""
    expected = receipt["expected"]
    expected["memory_bytes"] = memory_bytes
    if receipt["devices"]["kind"] == "cpu":  # there the process holds it, beside the interpreter and the compiler
        expected["memory_bytes"] += memory_now()["memory/host_bytes"] - expected["state_bytes"]
    check_fits(known_hardware(config, receipt["devices"]["kind"]), memory_bytes)
    console.print(f"compiled the step: {size(memory_bytes)} a device at its peak", style="dim")


def show_header(experiment: Experiment, receipt: dict[str, Any], notes: list[str]) -> None:
    """Devices, mesh, parameters, tokens, memory and time expected."""
    train, expected, devices, model = experiment.train, receipt["expected"], receipt["devices"], receipt["model"]
    tokens = train.steps * train.batch_size * experiment.data.seq_len
    mesh = " x ".join(f"{axis}={n}" for axis, n in receipt["mesh"].items() if n > 1) or "one device"
    available = sum(part["train"]["tokens"] for part in receipt["data"].values())
    text_bytes = sum(part["train"]["bytes"] for part in receipt["data"].values())
    vocabulary = f"{model['vocab_size']:,} tokens"
    hosts = f" on {devices['hosts']} hosts" if devices["hosts"] > 1 else ""
    rows = {
        "devices": f"{devices['count']} x {devices['kind']}{hosts}, {model['dtype']}, attention: {model['attention']}",
        "mesh": mesh,
        "parameters": f"{model['params']:,}",
        "data": f"{count(available)} tokens of {size(text_bytes)} text, vocabulary {vocabulary}",
        "to see": f"{count(tokens)} tokens in {train.steps:,} steps of {train.batch_size} x {experiment.data.seq_len} "
        f"({tokens / available:.2f} epochs)",
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
    names = ("train/loss", "eval/loss", "eval/bits_per_byte", "eval/accuracy")
    rate, peak = meter.mean_rate(), receipt["devices"]["peak_flops"]
    return {name: latest[name] for name in names if name in latest} | {
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
    figures = ""
    if "eval/bits_per_byte" in latest:
        figures = f": {latest['eval/loss']:.4f} nats/token, {latest['eval/bits_per_byte']:.4f} bits/byte held out"
    console.print(f"[bold]{'stopped' if resume else 'done'}[/] after {duration(wall)}{figures}")
    console.print(f"run     {folder}\nreport  {report}", soft_wrap=True)
    if resume:
        console.print(f"saved; resume with\n  {resume}", soft_wrap=True, markup=False)
