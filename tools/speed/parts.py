"""What tools/bench_gpu.py runs, in which order, and how long each may take."""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

VARIANTS = [  # config, keys, in the order in which they tell most
    ("G1B3", "model.linear_dtype=float8"), ("G124", "model.linear_dtype=float8"),
    ("G124", "model.remat=none"), ("G1B3", "model.remat=none"), ("G1B3", "model.scan_layers=false"),
    ("G124", "model.attention=xla"), ("G124", "train.batch_size=64"), ("G1B3", "train.batch_size=16"),
    ("G124", "objective.chunk_tokens=8192"), ("G1B3", "objective.chunk_tokens=8192"),
    ("G1B3", "model.remat=names train.batch_size=16"), ("G1B3", "model.attention=xla"),
    ("G124", "model.remat=names"), ("G124", "objective.chunk_tokens=0"),
]  # fmt: skip


class Part(NamedTuple):
    """A command of tools/ and the seconds that it may take."""

    name: str
    seconds: float
    command: list[str]


def parts(args: argparse.Namespace, run: str) -> list[Part]:
    """All but the variants, the most important first."""
    small, out = args.rehearse, ["--out", str(args.out), *(["--rehearse"] if args.rehearse else [])]
    torch = f"python {args.peer} --mode {'eager' if small else 'compile'} --opt fused"
    torch += "" if small else " --device cuda"
    beside = ["--peer-dir", str(args.peer_dir), "--peer", f"torch={torch}"] if args.peer_dir else []
    decode = ["--config", "T", "--prompt", "16", "--new", "8", "--rounds", "1", "--copied", "4000000"] if small else []
    idle = ["data.seq_len=1024", "train.batch_size=32"]
    if small:
        idle = ["model.num_layers=2", "model.embed_dim=64", "model.num_heads=2", "model.vocab_size=512"]
    steps = ["--steps", "14", "--every", "5", "--words", "300"] if small else ["--steps", "45", "--every", "15"]
    first = ["--lmkit", "lmkit=", *([] if small else ["--lmkit", "unrolled=model.scan_layers=false"])]
    side = ["--side", "256", "--bytes", "4000000"] if small else []
    profile = ["--label", "profile", "--init", "own", "--reuse-rates", "--profile", str(args.out / "traces")]
    return [
        Part("check", 120, ["bench_check.py", *out, *(["--only", "bfloat16, xla"] if small else [])]),
        Part("train, 124 M", 140, train(args, run, "G124", 5, 10, [*first, *beside])),
        Part("train, 1.3 B", 190, train(args, run, "G1B3", 4, 5, ["--reuse-rates", "--together", *beside])),
        Part("rates, float8", 40, ["bench_rates.py", "--lib", "qwix", "--dtype", "bf16", "--keep", *out, *side]),
        Part("decode", 55, ["bench_decode.py", *out, *decode]),
        Part("idle", 55, ["bench_idle.py", *out, *steps, "--keys", *idle]),
        Part("profile, 124 M", 60, train(args, run, "G124", 1, 5, profile)),
    ]


def train(args: argparse.Namespace, run: str, config: str, rounds: int, steps: int, more: list[str]) -> list[str]:
    """A call of tools/bench.py."""
    if args.rehearse:
        config, rounds, steps, more = "T", 1, 2, [*more, "--rehearse"]
    sizes = ["--rounds", str(rounds), "--steps", str(steps), "--threads", "2" if args.rehearse else "0"]
    return ["bench.py", "--config", config, "--dtype", "bf16", "--run", run, "--out", str(args.out), *sizes, *more]


def variants(args: argparse.Namespace, run: str) -> Iterator[Part]:
    """Rows of lmkit alone, for what is left of the time; in a rehearsal one."""
    for config, keys in VARIANTS[:1] if args.rehearse else VARIANTS:
        row = f"{config}, {keys.replace('=', ' ')}={keys}"
        more = ["--lmkit", row, "--label", "variants", "--init", "own", "--reuse-rates"]
        yield Part(f"{config}, {keys}", 90, train(args, run, config, 3, 5, more))
