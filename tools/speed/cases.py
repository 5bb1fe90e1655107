"""What tools/bench_check.py compares, and how far apart two right answers may be.

| error | tolerance | why |
|---|---|---|
| loss, float32 | 1e-5 of it; 1e-3 with TF32 products | sums in another order; TF32 keeps 10 bits of each factor |
| gradients, float32 | 1e-4 of their norm; 1e-2 with TF32 | the same, through 4 layers and back |
| loss, bfloat16 | 5e-4 of it | a rounding is up to 4e-3, and the mean over a thousand tokens evens them out |
| gradients, bfloat16 | 3e-2 of their norm | each of some 40 products in a row rounds what goes in |
| loss, gradients, float8 linear layers | 5e-3, 1.5e-1 | e4m3 rounds by up to 6e-2, e5m2 by twice that |
| text | the chosen token's logit is so near the best: 1e-4, in bfloat16 1e-1 of their spread | ties break either way |
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

VOCAB, SEQ, ROWS, NEW = 1024, 256, 4, 24
MODEL = f"""run.name=check model=gpt2_124m model.num_layers=4 model.embed_dim=256 model.num_heads=4
    model.vocab_size={VOCAB} model.max_seq_len={SEQ} data.seq_len={SEQ} train.batch_size={ROWS} mesh.data=-1""".split()
LOSS = {"highest": 1e-5, "default": 1e-3, "bfloat16": 5e-4, "float8": 5e-3}
GRADIENTS = {"highest": 1e-4, "default": 1e-2, "bfloat16": 3e-2, "float8": 1.5e-1}
TEXT = {"highest": 1e-4, "bfloat16": 1e-1}
_ROUNDED = ("bfloat16", "float8")


class Case(NamedTuple):
    """What is compared: a precision of LOSS, keys, and whether rows are packed documents."""

    name: str
    precision: str
    keys: list[str]
    packed: bool


def cases() -> Iterator[Case]:
    """Float32 in full and as it is by default, bfloat16 by kernel, and what changes the order of things."""
    for packed in (False, True):
        told = ", packed" if packed else ""
        for kernel in ("xla", "cudnn"):
            yield Case(f"bfloat16, {kernel}{told}", "bfloat16", [f"model.attention={kernel}"], packed)
        yield Case(f"float32{told}", "highest", ["model.attention=xla"], packed)
    yield Case("float32, default products", "default", [], False)
    yield Case("bfloat16, float8 linear layers", "float8", ["model.linear_dtype=float8"], False)
    yield Case("bfloat16, remat, chunks", "bfloat16", ["model.remat=names", "objective.chunk_tokens=128"], False)


@functools.cache
def batch_of(packed: bool) -> dict[str, np.ndarray]:
    """Random tokens, fresh in each process; packed rows have documents that end anywhere."""
    rng = np.random.default_rng()
    tokens = rng.integers(0, VOCAB, (ROWS, SEQ + 1), dtype=np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((ROWS, SEQ), np.float32)}
    if packed:
        batch["segment_ids"] = 1 + np.cumsum(rng.random((ROWS, SEQ)) < 4 / SEQ, axis=1, dtype=np.int32)
    return batch


def dtype_of(precision: str) -> str:
    """As a key."""
    return f"model.dtype={'bfloat16' if precision in _ROUNDED else 'float32'}"


def products(precision: str) -> Any:
    """The context of a precision; factors that have been rounded are exact as they are."""
    return jax.default_matmul_precision("default" if precision in _ROUNDED else precision)
