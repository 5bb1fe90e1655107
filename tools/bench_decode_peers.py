"""Decoding on one core of a CPU beside llama.cpp and transformers: the same weights, prompts and number of tokens.

    python tools/bench_decode_peers.py --node FOLDER --peer-python PYTHON_WITH_TORCH --batch 1 16

Random weights of SmolLM2-135M's shape are written as a Hugging Face folder and as GGUF files (F32, and quantised).
Every row of the table is a process on the same core. They take turns, a text of each row of the batch a turn; what is
between two tokens is a step. FOLDER is where `npm install node-llama-cpp@3.22.1` was run; what is missing is skipped,
and said. The limit is a step's bytes, its weights and the cache read once, at the rate at which a sum reads memory.
Appends JSON lines to experiments/benchmarks/decode_peers.jsonl; tools/bench_docs.py puts them into the page.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_decode import bytes_a_token, make_params
from speed.decoding import table
from speed.records import BENCHMARKS, ROOT, Record, keep, stamp

from lmkit import interop
from lmkit.config.entry import compose
from lmkit.decode import Decoder, Prompts, Sampling
from lmkit.parallel.mesh import build_mesh
from lmkit.weights import open_model

SPEED = ROOT / "tools" / "speed"
_READ = 64 << 20  # float32 numbers of the sum that measures the memory
_QUANTISED = {"Q8_0": 34 / 32, "Q4_1": 20 / 32, "Q4_0": 18 / 32}  # bytes a number of a matrix


class Worker:
    """A process that answers each line with the times of one turn."""

    def __init__(self, name: str, weights: str, batch: int, bytes_a_number: float, command: list[str], core: int):
        self.name, self.weights, self.batch, self.bytes_a_number = name, weights, batch, bytes_a_number
        self.walls: list[float] = []
        self.cpus: list[list[float]] = []
        self.tokens: list[int] = []
        pinned = ["taskset", "-c", str(core), *command]
        own = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
        self._process = subprocess.Popen(pinned, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **own)  # type: ignore
        self.error = "" if self._answer().get("ready") else f"{name}: it did not start"

    def _answer(self) -> Record:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return {}

    def turn(self) -> None:
        """One text of each row. The first turn compiles, and does not count: call `forget` after it."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._answer()
        if not answer:
            self.error = f"{self.name}: it ended with status {self._process.wait()}"
            return
        self.walls += answer["walls"]
        self.cpus.append(answer["cpus"])
        self.tokens = answer["tokens"]

    def forget(self) -> None:
        self.walls, self.cpus = [], []

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def record(self, limit_bytes: float, bandwidth: float) -> Record:
        """What it took: medians over all steps; the range over turns."""
        turns = [statistics.mean(one) for one in self.cpus]
        cpu_s, step_s = statistics.median(turns), statistics.median(self.walls)
        return {
            "name": self.name, "weights": self.weights, "batch": self.batch, "step_s": step_s, "cpu_s": cpu_s,
            "cpu_s_min": min(turns), "cpu_s_max": max(turns), "tokens_per_sec": self.batch / step_s,
            "tokens_per_cpu_sec": self.batch / cpu_s, "bytes_a_step": limit_bytes,
            "share": limit_bytes / bandwidth / cpu_s, "first_tokens": self.tokens[:8],
        }  # fmt: skip


def serve(folder: str, rows: int, prompt: int, new: int) -> None:
    """lmkit's own worker."""
    model = open_model(folder)
    mesh = build_mesh(compose(["run.name=x", "model=gpt_schema"]).mesh, jax.devices()[:1])
    merge, params = model.for_inference(mesh)
    decoder = Decoder(merge, model.config, Sampling(), mesh=mesh)
    params = decoder.prepared(params)
    prompts = Prompts([[400 + place + row for place in range(prompt)] for row in range(rows)])
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        times, tokens = [], []
        for token in decoder.stream(params, prompts, max_new_tokens=new):
            times.append((time.perf_counter(), time.process_time()))
            tokens.append(int(token[0]))
        steps = list(pairwise(times[1:]))
        walls, cpus = ([after[i] - before[i] for before, after in steps] for i in (0, 1))
        print(json.dumps({"walls": walls, "cpus": cpus, "tokens": tokens}), flush=True)


def read_rate() -> float:
    """Bytes a second that one sum reads, the best of ten."""
    x, total = jnp.ones(_READ, jnp.float32), jax.jit(jnp.sum)
    best = float("inf")
    for _ in range(11):
        start = time.perf_counter()
        total(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return x.nbytes / best


def write_gguf(tensors: dict[str, np.ndarray], config: Any, path: Path, kind: str) -> None:
    """A Llama of these weights; matrices as `kind`, the rest in float32. Its tokenizer is a stand-in."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.embed_dim)
    writer.add_feed_forward_length(config.mlp_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{number}>" for number in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    for name, value in tensors.items():
        heads = {"q_proj": config.num_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2], 0)
        if heads:  # llama.cpp turns neighbouring numbers, Hugging Face's layout the two halves of a head
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        own = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        new_name = names.get_name(name, try_suffixes=(".weight",))
        assert new_name is not None, name
        if own is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(new_name, np.ascontiguousarray(value, np.float32))
        else:
            writer.add_tensor(new_name, gguf.quants.quantize(value.astype(np.float32), own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_models(args: argparse.Namespace, place: Path) -> tuple[Any, Any]:
    """(configuration, parameters) of the model that every row runs, after its files are written."""
    from safetensors.numpy import load_file

    config: Any = compose(["run.name=x", f"model={args.model}", "model.dtype=float32", *args.keys]).model
    _, params = make_params(config, jnp.float32)
    interop.save_folder(place / "hf", config, params)
    tensors = load_file(place / "hf" / "model.safetensors")
    for kind in ["F32", *args.quantised] if args.node else []:
        write_gguf(tensors, config, place / f"{kind}.gguf", kind)
    return config, params


def start_workers(args: argparse.Namespace, place: Path) -> list[Worker]:
    """All rows of the table, and a line for each that cannot be."""
    workers, sizes = [], [str(args.prompt), str(args.new)]
    me = [sys.executable, str(ROOT / "tools" / "bench_decode_peers.py")]
    for batch in args.batch:
        rows = [("lmkit", "float32", 4.0, [*me, "--serve", str(place / "hf"), str(batch), *sizes])]
        for kind in ["F32", *args.quantised] if args.node else []:
            script = ["node", str(SPEED / "decode_llama.mjs"), str(args.node), str(place / f"{kind}.gguf")]
            rows.append(("llama.cpp", kind, _QUANTISED.get(kind, 4.0), [*script, str(batch), *sizes]))
        if args.peer_python:
            script = [args.peer_python, "-P", str(SPEED / "decode_transformers.py"), str(place / "hf")]
            rows.append(("transformers", "float32", 4.0, [*script, str(batch), *sizes]))
        workers += [Worker(name, kind, batch, each, words, args.core) for name, kind, each, words in rows]
    for flag, given in (("llama.cpp: give --node", args.node), ("transformers: give --peer-python", args.peer_python)):
        if not given:
            print(f"SKIPPED {flag}", flush=True)
    return workers


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", help="a Llama's preset")
    parser.add_argument("--keys", nargs="*", default=[], help="further lmkit keys")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=21, help="tokens")
    parser.add_argument("--new", type=int, default=128, help="tokens that are made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--quantised", nargs="*", default=[], choices=_QUANTISED, help="further files for llama.cpp")
    parser.add_argument("--node", type=Path, help="where node_modules has node-llama-cpp")
    parser.add_argument("--peer-python", default="", help="a Python with torch and transformers")
    parser.add_argument("--out", type=Path, default=BENCHMARKS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    os.sched_setaffinity(0, {args.core})  # before jax starts its threads, which inherit it
    with tempfile.TemporaryDirectory() as folder:
        config, params = write_models(args, Path(folder))
        workers = start_workers(args, Path(folder))
        rates = []
        for number in range(args.rounds + 1):
            rates.append(read_rate())
            for worker in workers:
                if not worker.error:
                    worker.turn()
            if not number:
                for worker in workers:
                    worker.forget()
        for worker in workers:
            worker.end()
    found = []
    for worker in workers:
        if worker.error:
            print(f"FAILED {worker.error}")
            continue
        length = args.prompt + args.new / 2
        weights, cache = bytes_a_token(params, config, 4, worker.batch, length)
        found.append(worker.record(weights / 4 * worker.bytes_a_number + cache, max(rates)))
    facts = {"model": args.model, "prompt": args.prompt, "new": args.new, "bytes_per_sec": max(rates)}
    for row in found:
        keep(args.out, "decode_peers", stamp() | facts | row)
    print(f"memory: {max(rates) / 1e9:.1f} GB/s\n\n{table(found)}")
    print("first tokens:", *(f"{row['name']} {row['weights']} {row['first_tokens']}" for row in found), sep="\n  ")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
