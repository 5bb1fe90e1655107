"""The machine's own row of tools/bench.py: how fast a matrix product and a copy run, in jax or in PyTorch.

It speaks the protocol of tools/bench_worker.py: for "go N" the best of N products and of N copies, as flops_per_sec
and bytes_per_sec (read and written), and as flops_per_cpu_sec, which neighbours on the machine do not change.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speed.records import BENCHMARKS, keep, stamp

_CPU, _DEVICE = (2048, 256 << 20), (8192, 2 << 30)  # side of the matrices, bytes that are copied
_AT_LEAST, _KEPT = 3, 20  # of each: a turn, and without turns


def make_jax(dtype: str, side: int, num_bytes: int, fp8: bool = False) -> tuple[Callable, Callable, dict[str, Any]]:
    """product(), copy() and what is known of the place. Both wait for the device.

    `fp8`: of matrices that qwix has quantised to float8 (e4m3) before, with a scale a row and column.
    """
    import jax
    import jax.numpy as jnp

    platform = jax.default_backend()
    side, num_bytes = (side or (_CPU if platform == "cpu" else _DEVICE)[0]), num_bytes or size_of(platform)
    a, b = (jax.random.normal(jax.random.key(n), (side, side), jnp.dtype(dtype)) for n in range(2))
    x = jax.random.normal(jax.random.key(2), (num_bytes // 4,), jnp.float32)
    if fp8:
        import qwix

        a, b = (qwix.quantize(one, jnp.float8_e4m3fn, channelwise_axes=[axis]) for axis, one in ((0, a), (1, b)))
        dot = qwix.dot_general
    else:
        dot = jax.lax.dot_general
    product, add = jax.jit(lambda a, b: dot(a, b, (((1,), (0,)), ((), ())))), jax.jit(lambda x: x + 1)
    facts = {"versions": {"jax": jax.__version__}, "device": jax.devices()[0].device_kind, "side": side}
    facts |= {"copied": 2 * x.nbytes, "platform": platform}
    return lambda: product(a, b).block_until_ready(), lambda: add(x).block_until_ready(), facts


def make_torch(dtype: str, side: int, num_bytes: int, threads: int) -> tuple[Callable, Callable, dict[str, Any]]:
    """The same."""
    import torch

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side, num_bytes = (side or (_CPU if device == "cpu" else _DEVICE)[0]), num_bytes or size_of(device)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # as the peers do
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    x = torch.randn(num_bytes // 4, device=device)
    y = torch.empty_like(x)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    facts = {"versions": {"torch": torch.__version__}, "side": side, "copied": 2 * num_bytes, "platform": device}
    return lambda: (a @ b, wait()), lambda: (torch.add(x, 1, out=y), wait()), facts


def size_of(platform: str) -> int:
    """Several times any cache."""
    return (_CPU if platform == "cpu" else _DEVICE)[1]


def best(work: Callable, repeats: int) -> tuple[float, float]:
    """Fewest seconds of a call: on the wall, and of the process's CPUs."""
    wall, busy = [], []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - cpu)
    return min(wall), min(busy)


def rates(product: Callable, copy: Callable, facts: dict[str, Any], repeats: int) -> dict[str, float]:
    """The best of some products and copies."""
    repeats = max(repeats, _AT_LEAST)
    (wall, busy), (copied, _) = best(product, repeats), best(copy, repeats)
    flops = 2.0 * facts["side"] ** 3
    found = {"flops_per_sec": flops / wall, "flops_per_cpu_sec": flops / max(busy, 1e-9)}
    return {"chunk_s": wall, **found, "bytes_per_sec": facts["copied"] / copied}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lib", default="jax", choices=["jax", "torch", "qwix"], help="qwix: float8 products")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--side", type=int, default=0, help="of the matrices; 0 = 2048 on a CPU, 8192 elsewhere")
    parser.add_argument("--bytes", type=int, default=0, help="that are copied; 0 = 256 MiB on a CPU, 2 GiB elsewhere")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--config", help="not used")
    parser.add_argument("--name", default="rates")
    parser.add_argument("--interactive", action="store_true")
    parser.add_argument("--keep", action="store_true", help="no protocol: measure once, for --out")
    parser.add_argument("--out", type=Path, default=BENCHMARKS)
    parser.add_argument("--rehearse", action="store_true", help="the line counts for nothing")
    args, _ = parser.parse_known_args()
    if args.lib == "qwix" and importlib.util.find_spec("qwix") is None:
        return print("bench_rates: qwix is not installed: float8 is not measured")
    began, dtype = time.time(), {"fp32": "float32", "bf16": "bfloat16"}[args.dtype]
    if args.lib == "torch":
        product, copy, facts = make_torch(dtype, args.side, args.bytes, args.threads)
    else:
        product, copy, facts = make_jax(dtype, args.side, args.bytes, args.lib == "qwix")
    for work in (product, copy):  # the clocks come up, and what is compiled is
        best(work, 3)
    if args.keep:
        found = rates(product, copy, facts, _KEPT)
        figures = {name: float(f"{value:.4g}") for name, value in found.items()}
        place = {"platform": "cpu" if facts["platform"] == "cpu" else "gpu", "device": facts.get("device")}
        names = {"name": f"{args.lib} rates", "dtype": "fp8" if args.lib == "qwix" else args.dtype, "figures": figures}
        keep(args.out, "rates", stamp() | names | place | found | ({"rehearsed": True} if args.rehearse else {}))
        return print(f"{args.lib}: {found['flops_per_sec'] / 1e12:.4g} TFLOP/s", flush=True)
    info = {"name": args.name, "params": 0, "tokens_per_step": 0, "warm_losses": [0.0], "last_loss": 0.0, **facts}
    print(json.dumps({"ready": True, **info, "to_first_step_s": round(time.time() - began, 2)}), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        print(json.dumps(rates(product, copy, facts, int(line.split()[1]))), flush=True)
    print(json.dumps(info), flush=True)


if __name__ == "__main__":
    main()
