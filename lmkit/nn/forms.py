"""The forms in which each platform computes fast: the one place in the model's code that knows platforms.

All forms of a function give the same numbers but for rounding. What a CPU's library is fast in was measured
(docs/performance.md) and is written in nn/product.py; a GPU's and a TPU's compilers are best left alone.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lmkit.compiler.programs import onednn, steady_sums
from lmkit.nn.float8 import float8_product
from lmkit.nn.grouped import blocked_product
from lmkit.nn.product import contract, cpu_product, cpu_scaled, dot, over_rows, transposed
from lmkit.parallel.devices import platform
from lmkit.parallel.rules import split_axes

_LANES = 128  # of a TPU's vectors
_IN, _OUT, _LEAD = "abc", "xyz", "klm"
_Precision = lax.Precision | None  # of float32 operands; None: as the platform multiplies by default


def default_dtype() -> jnp.dtype:
    """What a model computes in unless its configuration says otherwise: bfloat16 on accelerators, float32 on a CPU."""
    return jnp.dtype(jnp.float32 if platform() == "cpu" else jnp.bfloat16)


def attention_backend() -> str:
    """The platform whose attention kernels can run: cpu, gpu or tpu (nn/attend.py chooses among them)."""
    return platform()


def gpu_capability() -> float:
    """Of the GPUs here, as NVIDIA counts: 8.0 is an A100, 9.0 an H100; 9.0 where they do not say, or there is none."""
    return float(getattr(jax.devices()[0], "compute_capability", None) or 9.0) if platform() == "gpu" else 9.0


def decoding_rows(platform: str) -> tuple[int, ...]:
    """How many rows a device's decoding step may have, so that a row's bits do not depend on the count; ascending.

    XLA's CPU library computes 4 to 16 rows of a float32 product by the same sums, but one row, or 32, by others, and
    two by others from jax 0.12 on. Other platforms' libraries choose a product's form by its shape: there every step
    has the same number of rows.
    """
    return (4, 8, 16) if platform == "cpu" else (16,)


def walks_along_keys() -> bool:
    """Whether one query's scores are faster as sums along the keys: for a product a CPU copies them to [B, K, X, H].

    8 heads of 64, 512 keys, 16 rows: 5.4 ms instead of 25 for scores and values. XLA's other library for sums takes
    longer than the product.
    """
    return steady_sums()


def one_pass_random() -> bool:
    """Whether random numbers are faster written out (nn/random.py): XLA's CPU loops go to memory for each round."""
    return platform() == "cpu"


def exact_einsum(equation: str, *operands: jax.Array, spec: PartitionSpec | None = None) -> jax.Array:
    """`jnp.einsum` of float32 operands in float32 on every platform.

    Left to its default, a TPU's product rounds float32 operands to bfloat16, and a GPU's to TF32.
    """
    return jnp.einsum(equation, *operands, precision=lax.Precision.HIGHEST, out_sharding=spec)


def linear(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, num_in: int, spec: PartitionSpec | None, *,
    float8: bool = False, exact: bool = False,
) -> jax.Array:  # fmt: skip
    """x W + b: [..., *ins] and [*ins, *outs] to [..., *outs] in x's dtype.

    Args:
        num_in: how many dims `ins` are.
        spec: how the result is split over the mesh; None without one.
        float8: whether the operands are rounded to it.
        exact: whether float32 operands are multiplied as they are; see `exact_einsum`.
    """
    precision = lax.Precision.HIGHEST if exact else None
    if float8:
        y = float8_product(x, kernel, num_in, spec)
    elif spec is None:
        return _flat(x, kernel, bias, num_in, precision)
    else:
        y = _split(x, kernel.astype(x.dtype), num_in, spec, precision)
    return y if bias is None else y + bias.astype(x.dtype)


def _flat(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, num_in: int, precision: _Precision) -> jax.Array:
    """One product of matrices, on one device."""
    lead, outs, size = x.shape[: x.ndim - num_in], kernel.shape[num_in:], math.prod(kernel.shape[:num_in])
    x_nI, kernel_IO = x.reshape(-1, size), kernel.reshape(size, -1)
    if platform() == "cpu":
        return cpu_product(x_nI, kernel_IO, None if bias is None else bias.reshape(-1)).reshape(*lead, *outs)
    y = jnp.matmul(x_nI, kernel_IO.astype(x.dtype), precision=precision).reshape(*lead, *outs)
    return y if bias is None else y + bias.astype(x.dtype)


def _split(x: jax.Array, kernel: jax.Array, num_in: int, spec: PartitionSpec, precision: _Precision) -> jax.Array:
    """A product whose operands and result are split over a mesh."""
    lead = x.shape[: x.ndim - num_in]
    a, b, c = _IN[:num_in], _OUT[: kernel.ndim - num_in], _LEAD[: len(lead)]
    splits = (spec, jax.typeof(x).sharding.spec)
    # The weight gradient of [B, T, ...] contracts two dims, which XLA's CPU library does three times slower: one flat
    # product there, wherever only the first dim is split. (The TPU's compiler would gather kernels once more.)
    if platform() == "cpu" and all(_only_first(one[: len(lead)]) for one in splits):
        rows = x.reshape(-1, *x.shape[len(lead) :])
        flat = PartitionSpec(spec[0], *spec[len(lead) :])
        y = jnp.einsum(f"k{a},{a}{b}->k{b}", rows, kernel, out_sharding=flat)
        return y.reshape(*lead, *kernel.shape[num_in:])
    return jnp.einsum(f"{c}{a},{a}{b}->{c}{b}", x, kernel, precision=precision, out_sharding=spec)


def _only_first(entries: tuple) -> bool:
    """Whether at most the first dim of several is split, so that all of them can become one."""
    return len(entries) > 1 and all(entry is None for entry in entries[1:])


def expert_block(choices: float, experts: float, backend: str = "") -> int:
    """Rows that `grouped_product` takes at a time, where so many choices are of so many experts; 1 on a TPU: all.

    Each expert's last block is half empty: with a block of a quarter of an expert's share, that is an eighth of all.

    Args:
        backend: cpu, gpu or tpu; "" for the platform that this runs on.
    """
    if (backend or platform()) == "tpu":
        return 1
    return 1 << int(math.log2(min(max(choices / experts / 4, 8), 2048)))


def grouped_product(x_SI: jax.Array, w_eIO: jax.Array, rows_e: jax.Array, block: int) -> jax.Array:
    """[S, I] by its own expert's matrix of [e, I, O] to [S, O]: of `rows` rows each, multiples of the block."""
    if block == 1:
        return lax.ragged_dot(x_SI, w_eIO, rows_e)
    return blocked_product(x_SI, w_eIO, rows_e // block, block)


def scaled(y: jax.Array, scale_D: jax.Array) -> jax.Array:
    """float32 [..., D] times [D]."""
    if platform() != "cpu" or split_axes() or y.ndim < 2:
        return y * scale_D
    return cpu_scaled(y.reshape(-1, y.shape[-1]), scale_D).reshape(y.shape)


def recomputed(x: jax.Array) -> jax.Array:
    """`x` as a backward pass takes it that computes from it again.

    On accelerators behind a barrier: else what is computed again, a tanh say, is computed once for both passes, and
    written to memory in float32.
    """
    return x if platform() == "cpu" else lax.optimization_barrier(x)


def exchangeable(x: jax.Array) -> jax.Array:
    """`x` as an all-to-all takes it that cuts it up.

    XLA's CPU compiler fails where the pieces are arrays that were joined before and lie in memory in several orders.
    """
    return lax.optimization_barrier(x) if platform() == "cpu" else x


def row_padding(columns: int) -> int:
    """How many times the bytes of rows of so many numbers they take in memory: a TPU pads them to its 128 lanes."""
    return max(1, _LANES // columns) if platform() == "tpu" else 1


def picked(logits_nV: jax.Array, index_n: jax.Array, hit_nV: jax.Array) -> jax.Array:
    """[n] of the logits, and 0 where the index lies outside the slice of the vocabulary; `hit` marks the index.

    GPUs and TPUs fuse the mask with the sum; a CPU would write [n, V] for it, 6 % of a step of gpt2_124m.
    """
    if platform() != "cpu":
        return jnp.sum(jnp.where(hit_nV, logits_nV, 0.0), axis=1)
    inside_n = (index_n >= 0) & (index_n < logits_nV.shape[1])
    chosen_n1 = jnp.take_along_axis(logits_nV, jnp.where(inside_n, index_n, 0)[:, None], axis=1, mode="clip")
    return jnp.where(inside_n, chosen_n1[:, 0], 0.0)


def head_gradient(hidden_nD: jax.Array, d_logits_nV: jax.Array) -> jax.Array:
    """The head's gradient [V, D] in float32, of some tokens.

    A CPU's library is twice as fast where it computes [D, V], which is then transposed.
    """
    if platform() != "cpu":
        return contract("nV,nD->VD", d_logits_nV, hidden_nD)
    flip = hidden_nD.dtype != jnp.float32 and not onednn()
    d_head_DV = dot(transposed(hidden_nD), d_logits_nV) if flip else over_rows(hidden_nD, d_logits_nV)
    return lax.optimization_barrier(d_head_DV).T
