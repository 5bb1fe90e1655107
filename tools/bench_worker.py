"""lmkit's row of tools/bench.py: trains a GPT-2-shaped model on random tokens, driven over stdin.

Protocol, shared with the peers: a JSON line {"ready": true, ...} after the warm-up; then for each line "go N" on
stdin N steps and a line {"chunk_s": seconds a step}; "end" ends with a summary line. Beyond the peers:
"profile FOLDER" traces three steps and answers with the ops that took longest.
"""

import argparse
import dataclasses
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
from speed.floors import floors_of
from speed.model import SHAPES, batch_of, experiment_of, load_reference, start_steps, tokens_of
from speed.profile import expensive_ops, op_names
from speed.records import free_bytes, process_start

from lmkit.config.entry.process import prefer_huge_pages
from lmkit.console import size
from lmkit.core.state import init_state, make_blueprint
from lmkit.parallel import build_mesh, sharding_of
from lmkit.parallel.devices import platform, setup_jax

_PROFILED = 3  # steps


class Trainer:
    """A model on its devices, with compiled steps and a place in the data."""

    def __init__(self, args: argparse.Namespace):
        extra = [*args.overrides, *([f"train.batch_size={args.batch}"] if args.batch else [])]
        extra += [f"model.num_layers={args.layers}"] if args.layers else []
        self.experiment = experiment = experiment_of(args.config, args.dtype, extra)
        setup_jax(dataclasses.replace(experiment.run, compile_cache=args.cache))
        mesh = build_mesh(experiment.mesh)
        self.blueprint = make_blueprint(experiment.model, experiment.optim, 1000, mesh)
        self.sharding = sharding_of(("batch", "seq"), mesh)
        self.losses: list[float] = []
        self.count, free = 0, free_bytes()
        began, busy = time.perf_counter(), time.process_time()
        compiling = start_steps(experiment, self.blueprint, self.sharding)
        if not args.compile_only:
            self.state = init_state(self.blueprint, 0)  # meanwhile, as lmkit.train does
        self.programs = compiling.result()
        self.compile_s, self.compile_cpu_s = time.perf_counter() - began, time.process_time() - busy
        if args.compile_only:
            return
        if platform() == "cpu" and self.programs.memory_bytes > free:  # rather than be killed
            raise MemoryError(f"the step needs {size(self.programs.memory_bytes)}, {size(free)} are free")
        if args.init == "reference":
            self.state = load_reference(self.state, experiment)
        self.data = [batch_of(tokens) for tokens in tokens_of(experiment)]

    def run(self, steps: int) -> float:
        """Seconds a step, the last one's loss included."""
        start, metrics = time.perf_counter(), {}
        with jax.set_mesh(self.blueprint.mesh):
            for _ in range(steps):
                batch = jax.device_put(self.data[self.count % len(self.data)], self.sharding)
                self.state, metrics = self.programs.train(self.state, batch)
                self.count += 1
        self.losses.append(float(metrics["loss"]))
        return (time.perf_counter() - start) / steps

    def profile(self, folder: Path) -> list[dict[str, Any]]:
        """A trace of a few steps, and what was dear in it."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(str(folder), profiler_options=options):
            self.run(_PROFILED)
        return expensive_ops(folder, op_names(self.programs.train.as_text()))

    def peaks(self) -> dict[str, Any]:
        """Of the process, and of the fullest device where it tells."""
        devices = self.blueprint.mesh.devices.flat
        most = max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return {"peak_rss_mb": peak} | ({"device_peak_mb": round(most / 2**20)} if most else {})

    def facts(self) -> dict[str, Any]:
        """What is known before the first step."""
        experiment, devices = self.experiment, self.blueprint.mesh.size
        floors = floors_of(experiment, platform(), devices)
        return {
            "params": self.blueprint.num_params, "versions": {"jax": jax.__version__}, "devices": devices,
            "device": jax.devices()[0].device_kind, "batch": experiment.train.batch_size,
            "seq": experiment.data.seq_len, "tokens_per_step": experiment.train.batch_size * experiment.data.seq_len,
            "flops_per_step": floors.flops, "bytes_per_step": floors.num_bytes,
            "compile_s": round(self.compile_s, 2), "compile_cpu_s": round(self.compile_cpu_s, 2),
            "program_mb": round(self.programs.memory_bytes / 2**20),
        }  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="S", choices=SHAPES)
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, help="sequences a step, instead of the configuration's")
    parser.add_argument("--layers", type=int, help="instead of the configuration's")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--name", default="lmkit")
    parser.add_argument("--interactive", action="store_true")
    parser.add_argument("--threads", type=int, help="taken from the CPUs that the process may use")
    parser.add_argument("--init", default="reference", choices=["reference", "own"], help="own: drawn on the device")
    parser.add_argument("--cache", default="", help="folder of compiled programs; none without")
    parser.add_argument("--compile-only", action="store_true", help="compile, say what it took, end")
    parser.add_argument("overrides", nargs="*", help="lmkit keys, e.g. model.scan_layers=false")
    return parser.parse_args()


def main() -> None:
    """Sets up, warms up, answers."""
    args = parse()
    trainer = Trainer(args)
    info: dict[str, Any] = {"name": args.name, "keys": args.overrides}
    if args.compile_only:
        print(json.dumps(info | trainer.facts()), flush=True)
        return
    jax.block_until_ready(trainer.state)
    info |= {"to_ready_s": round(time.time() - process_start(), 2)}  # from here on it is the step itself
    trainer.run(1)
    to_first = round(time.time() - process_start(), 2)
    for _ in range(args.warmup - 1):
        trainer.run(1)
    info |= {"to_first_step_s": to_first, "warm_losses": trainer.losses[:], **trainer.facts()}
    print(json.dumps({"ready": True, **info}), flush=True)
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        if word == "end":
            break
        if word == "profile":
            print(json.dumps({"ops": trainer.profile(Path(argument))}), flush=True)
        else:
            print(json.dumps({"chunk_s": trainer.run(int(argument))}), flush=True)
    print(json.dumps(info | {"last_loss": trainer.losses[-1]} | trainer.peaks()), flush=True)


if __name__ == "__main__":
    prefer_huge_pages()  # as lmkit.train does
    main()
