"""Decoding: tokens a second of lmkit.decode beside the limit of the memory's bandwidth, measured in the same run.

    python tools/bench_decode.py --config G1B3 --dtype bf16 --batch 1 64

To make a token, every parameter of a product and the keys and values of the tokens so far must be read once; the limit
is those bytes over the rate of a copy. Parameters are fresh, in the compute dtype unless --params float32. Appends one
JSON line a batch size to experiments/benchmarks/decode.jsonl.
"""

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_rates import best, make_jax
from flax import nnx
from speed.model import DTYPES, SHAPES, experiment_of
from speed.records import BENCHMARKS, Record, keep, stamp

from lmkit.decode import Decoder, Prompts, Sampling
from lmkit.models import build_model
from lmkit.nn.param import compute_dtype
from lmkit.nn.tree import flat
from lmkit.parallel.devices import platform

_COPIES = 10


def bytes_a_token(params: Any, config: Any, itemsize: int, batch: int, length: float) -> tuple[float, float]:
    """What must be read to make one token of each row: (parameters, keys and values of `length` tokens a row)."""
    tables = {path: leaf for path, leaf in flat(params).items() if "position" not in path}  # of that, a row
    read = itemsize * sum(math.prod(leaf.shape) for leaf in tables.values())
    return read, 2.0 * config.num_layers * batch * length * config.kv_heads * config.head_size * itemsize


def make_params(config: Any, dtype: Any) -> tuple[Any, Any]:
    """Parameters to a model, and fresh ones of a dtype."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))

    def init() -> Any:
        made = nnx.to_pure_dict(nnx.split(build_model(config, nnx.Rngs(0)))[1])
        return jax.tree.map(lambda x: x.astype(dtype), made)

    return lambda params: nnx.merge(graph, nnx.State(params)), jax.jit(init)()


def measure(decoder: Decoder, params: Any, args: argparse.Namespace, batch: int) -> list[float]:
    """Seconds a token of each round, prefill and compiling left out."""
    vocab = SHAPES[args.config][3]
    prompts = Prompts(np.random.default_rng(0).integers(0, vocab, (batch, args.prompt)).tolist())
    rounds = []
    for number in range(args.rounds + 1):
        ends = [time.perf_counter() for _ in decoder.stream(params, prompts, max_new_tokens=args.new, seed=number)]
        rounds.append((ends[-1] - ends[1]) / (len(ends) - 2))  # the first comes with the prefill
    return rounds[1:]  # the first compiled


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="G1B3", choices=SHAPES)
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new", type=int, default=128, help="tokens that are made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--params", default="compute", choices=["compute", "float32"], help="how they are kept")
    parser.add_argument("--keys", nargs="*", default=[], help="further lmkit keys")
    parser.add_argument("--copied", type=int, default=0, help="bytes of the copy; 0 = as tools/bench_rates.py")
    parser.add_argument("--rehearse", action="store_true", help="the lines count for nothing")
    parser.add_argument("--out", type=Path, default=BENCHMARKS)
    args = parser.parse_args()
    if args.new < 4:
        parser.error(f"--new {args.new}: the first tokens are not timed; take 4 or more")
    return args


def main() -> None:
    args = parse()
    config: Any = experiment_of(args.config, args.dtype, [f"data.seq_len={args.prompt + args.new}", *args.keys]).model
    _, copy, facts = make_jax(DTYPES[args.dtype], 128, args.copied)
    best(copy, 2)
    dtype = compute_dtype(config.dtype)
    merge, params = make_params(config, dtype if args.params == "compute" else jnp.float32)
    decoder = Decoder(merge, config, Sampling())
    shapes = jax.eval_shape(lambda: params)
    params = decoder.prepared(params) if args.params == "compute" else params
    for batch in args.batch:
        seconds = measure(decoder, params, args, batch)
        bandwidth = facts["copied"] / best(copy, _COPIES)[0]
        parts = bytes_a_token(shapes, config, dtype.itemsize, batch, args.prompt + args.new / 2)
        limit = sum(parts) / bandwidth
        step = statistics.median(seconds)
        found: Record = {
            "tokens_per_sec": batch / step, "tokens_per_sec_min": batch / max(seconds),
            "tokens_per_sec_max": batch / min(seconds), "limit_tokens_per_sec": batch / limit, "share": limit / step,
            "bytes_per_sec": bandwidth, "parameters_gb": parts[0] / 1e9, "cache_gb": parts[1] / 1e9,
        }  # fmt: skip
        record = stamp() | {
            "name": f"{args.config}, {args.dtype}, parameters {args.params}", "platform": platform(), "batch": batch,
            "device": None if platform() == "cpu" else facts["device"], "prompt": args.prompt, "new": args.new, **found,
            "figures": {"batch": batch} | {name: float(f"{value:.4g}") for name, value in found.items()},
        }  # fmt: skip
        keep(
            args.out,
            "decode",
            record | ({"rehearsed": True} if args.rehearse or (platform() != "cpu" and args.config != "G1B3") else {}),
        )
        told = f"{found['tokens_per_sec']:.1f} tokens/s, the limit is {found['limit_tokens_per_sec']:.1f}"
        print(f"batch {batch}: {told} ({found['share']:.0%})", flush=True)


if __name__ == "__main__":
    main()
