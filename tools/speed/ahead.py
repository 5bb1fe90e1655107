"""Steps compiled ahead of time for devices that need not be here: points, their programs' texts, and their times."""

import gzip
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from lmkit.compiler.choice import TPU_OPTIONS
from lmkit.compiler.topology import hardware_devices
from lmkit.config.entry import compose
from lmkit.core.aot import compile_step
from lmkit.core.setup import program_bytes
from lmkit.cost.estimate import Estimate, estimate
from lmkit.plan.timed import plain_timed, timed_of
from speed.records import ROOT, Record, newest, stamp

# MaxText's names of the same models, of the same remat, and of the mesh's axes.
MAXTEXT = {
    "gpt2_124m": "model_name=gpt3-52k override_model_config=true trainable_position_size=1024 base_emb_dim=768 "
    "base_num_query_heads=12 base_num_kv_heads=12 base_mlp_dim=3072 base_num_decoder_layers=12 head_dim=64 "
    "vocab_size=50257",
    "llama3_8b": "model_name=llama3-8b",
}
MAXTEXT_REMAT = {"dots": "minimal_with_context", "full": "full"}
MAXTEXT_AXES = {axis: f"ici_{axis}_parallelism" for axis in ("data", "fsdp", "tensor", "expert", "context")}


class Point(NamedTuple):
    """One program."""

    model: str  # an experiment
    hardware: str
    mesh: str  # axis=size ...
    remat: str
    keys: str  # further keys of lmkit
    options: str  # of TPU_OPTIONS; a GPU's has the first alone
    code: str = "lmkit"  # or maxtext

    @property
    def words(self) -> list[str]:
        """What `lmkit.plan` would be called with."""
        axes = ["mesh.data=1", "mesh.fsdp=1", *(f"mesh.{axis}" for axis in self.mesh.split())]
        last = {axis.partition("=")[0]: axis for axis in axes}
        return [f"+experiment={self.model}", f"hardware={self.hardware}", *last.values(), f"model.remat={self.remat}",
                *self.keys.split()]  # fmt: skip

    @property
    def title(self) -> str:
        return f"{self.code}: {' '.join(self.words)}, {self.options}"


def compiled_by(python: str, *names: str) -> dict[str, str]:
    """Versions of the distributions that decide what a Python's compilers make of a program; those that are there."""
    if python == sys.executable:
        found = {}
        for name in names:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found
    ask = f"""import importlib.metadata as m, json
have = {{d.metadata['Name'].lower(): d.version for d in m.distributions()}}
print(json.dumps({{n: have[n] for n in {list(names)} if n in have}}))"""
    return json.loads(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout)


def compile_point(point: Point, out: Path) -> None:
    """Compiles lmkit's step; writes OUT.txt.gz, the text, and OUT.json, the memory. Takes this process for itself."""
    experiment = estimate_of(point).context.experiment
    devices = hardware_devices(experiment.hardware, experiment.mesh.num_slices)
    _, compiled = compile_step(experiment, devices, TPU_OPTIONS[point.options] or None)
    write(out, compiled.as_text() or "", program_bytes(compiled.memory_analysis(), experiment.hardware.platform))


def estimate_of(point: Point) -> Estimate:
    """The arithmetic."""
    return estimate(compose(point.words))


def write(out: Path, text: str, peak_bytes: int) -> None:
    """The text first: what has its .json is whole."""
    with gzip.open(f"{out}.txt.gz", "wt", compresslevel=3) as file:
        file.write(text)
    Path(f"{out}.json").write_text(json.dumps({"peak_bytes": peak_bytes}))


def maxtext_words(point: Point, found: Estimate) -> list[str] | None:
    """The same step for MaxText's train_compile; None where its table has no such model, remat or axis."""
    experiment, sizes = found.context.experiment, {axis: n for axis, n in found.context.sizes.items() if n > 1}
    if point.model not in MAXTEXT or point.remat not in MAXTEXT_REMAT or not set(sizes) <= set(MAXTEXT_AXES):
        return None
    if experiment.hardware.platform != "tpu" or experiment.train.accumulate_steps > 1:
        return None
    devices = found.context.num_devices
    flags = " ".join(f"--{name}={value}" for name, value in TPU_OPTIONS[point.options].items())
    words = [*MAXTEXT[point.model].split(), f"remat_policy={MAXTEXT_REMAT[point.remat]}", "attention=flash",
             f"max_target_length={experiment.data.seq_len}", f"compile_topology={point.hardware}",
             "internal_compile=true", f"internal_compile_num_devices={devices}",
             f"per_device_batch_size={experiment.train.batch_size // devices}"]  # fmt: skip
    words += [f"compile_xla_flags={flags}"] * bool(flags)
    return [*words, *(f"{MAXTEXT_AXES[axis]}={n}" for axis, n in sizes.items())]


def compile_maxtext(python: str, words: list[str], out: Path) -> None:
    """By a Python that has it; what MaxText leaves behind is left beside the texts."""
    script = str(ROOT / "tools" / "speed" / "maxtext_step.py")
    subprocess.run([python, script, str(out.absolute()), *words], check=True, cwd=out.parent)


def read(point: Point, out: Path, versions: dict[str, str]) -> Record:
    """The record of a text that was compiled."""
    found = estimate_of(point)
    with gzip.open(f"{out}.txt.gz", "rt") as file:
        timed = timed_of(found.context, file.read())
    assert timed is not None, "a CPU's compiler says nothing of time"
    peak = json.loads(Path(f"{out}.json").read_text())["peak_bytes"]
    return stamp() | point._asdict() | plain_timed(timed) | {
        "rows": found.context.experiment.train.batch_size, "seq_len": found.context.experiment.data.seq_len,
        "peak_bytes": peak, "arithmetic_sec": found.step.total, "versions": versions,
    }  # fmt: skip


def table(found: list[Record]) -> str:
    """The newest record of each point as Markdown."""
    found = sorted(newest(found, *Point._fields), key=lambda row: (row["hardware"], row["model"], row["mesh"]))
    head = ("model", "hardware", "mesh", "remat", "rows", "options", "code", "step, ms", "MFU", "products",
            "waited, ms", "floors, ms: compute, memory", "arithmetic, ms", "peak, GiB", "kernels",
            "GB moved (of the floor)")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in found:
        kernels = row["kernels"]
        moved = f"{row['moved_bytes'] / 1e9:.0f} ({row['moved_bytes'] / row['floor_bytes']:.2f})" if kernels else ""
        cells = [
            row["model"], row["hardware"], row["mesh"] or "one", row["remat"], f"{row['rows']} x {row['seq_len']:,}",
            row["options"], row["code"], f"{row['seconds'] * 1e3:,.1f}", f"{row['mfu']:.1%}",
            f"{row['product_share']:.0%}", f"{sum(row['waited_sec'].values()) * 1e3:.1f}",
            f"{row['compute_floor_sec'] * 1e3:.1f}, {row['bandwidth_floor_sec'] * 1e3:.1f}",
            f"{row['arithmetic_sec'] * 1e3:,.1f}", f"{row['peak_bytes'] / 2**30:.2f}",
            f"{kernels:,}" if kernels else "", moved,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    versions = {f"{name} {version}" for row in found for name, version in row["versions"].items()}
    by = [f"- {row['model']} on {row['hardware']}: {_libraries(row)}" for row in found if row["kernels"]]
    return "\n".join(
        [
            *lines,
            "",
            *(["Products and attention by library:", "", *by, ""] if by else []),
            f"Compiled by {', '.join(sorted(versions))}.",
            "",
        ]
    )


def _libraries(row: Record) -> str:
    return ", ".join(f"{times} x `{name}`" for name, times in row["libraries"].items()) or "none"
