"""Scaled dot-product attention through the best kernel of the backend.

| kernel | where | needs |
|---|---|---|
| xla | everywhere | nothing; see blockwise.py |
| cudnn | NVIDIA GPUs | bfloat16 or float16, head size a multiple of 8 up to 256 (128 before Hopper), no softcap |
| splash | TPUs | T a multiple of 128 |

Where the sequence is split over the mesh axis `context`, see ring.py.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.sharding import PartitionSpec

from lmkit.config.base import ConfigError
from lmkit.config.sections.model import ContextAttention, Kernel
from lmkit.nn.blockwise import Options, Segments, blockwise_attention, reach
from lmkit.nn.forms import attention_backend, gpu_capability
from lmkit.nn.ring import exchange_heads, ring_attention
from lmkit.parallel.rules import current_spec, on_each_device, reshard, seq_dim, split_axes

# A block of 128, the library's default, leaves a TPU's matrix units waiting for memory; 512 is MaxText's.
_SPLASH_BLOCKS = (512, 384, 256, 128)
_HEADS = ("batch", None, "heads", "head")


def choose_kernel(
    kernel: Kernel,
    *,
    backend: str,
    dtype: jnp.dtype,
    head_size: int,
    seq_len: int,
    softcap: float = 0.0,
    bias: bool = False,
    two_sided: bool = False,
    apart: bool = False,
    capability: float = 9.0,
) -> Kernel:
    """The kernel that `auto` stands for here; raises ConfigError where the one asked for cannot run.

    Args:
        seq_len: of queries and of keys; where they differ, any length that both must be a multiple of.
        bias: the scores have an additive one.
        two_sided: a window without causality.
        apart: each position sees its own segment only; cudnn takes that as a mask [B, 1, T, S] in the scores' dtype.
        capability: of the GPU, as NVIDIA counts: 8.0 is an A100, 9.0 an H100.
    """
    widest = 256 if capability >= 9 else 128
    refusals = {Kernel.xla: "", Kernel.cudnn: "", Kernel.splash: ""}
    if seq_len % 128:
        refusals[Kernel.splash] = f"it needs a sequence length that is a multiple of 128, got {seq_len}"
    if backend != "gpu":
        refusals[Kernel.cudnn] = f"it needs an NVIDIA GPU, the backend is {backend}"
    elif dtype not in (jnp.bfloat16, jnp.float16):
        refusals[Kernel.cudnn] = f"it needs bfloat16, the compute dtype is {dtype}"
    elif head_size % 8 or head_size > widest:
        refusals[Kernel.cudnn] = f"it needs a head size that is a multiple of 8 up to {widest}, got {head_size}"
    elif apart and seq_len % 2:
        refusals[Kernel.cudnn] = f"it keeps documents apart in sequences of even length only, got {seq_len}"
    elif softcap:
        refusals[Kernel.cudnn] = f"it has no softcap, model.attention_softcap={softcap}"
    elif two_sided:
        refusals[Kernel.cudnn] = "its windows are causal, this model's are not"
    if bias:
        refusals[Kernel.cudnn] = refusals[Kernel.splash] = "it takes no bias of the scores, model.position=relative"
    if kernel is Kernel.auto:
        best = {"gpu": Kernel.cudnn, "tpu": Kernel.splash}.get(backend, Kernel.xla)
        return Kernel.xla if refusals[best] else best
    if refusals[kernel]:
        raise ConfigError(f"model.attention={kernel.name}: {refusals[kernel]}; set model.attention=auto")
    return kernel


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    segments: Segments | None = None,
    bias_NTS: jax.Array | None = None,
    causal: bool = True,
    window: int = 0,
    softcap: float = 0.0,
    scale: float = 0.0,
    kernel: Kernel = Kernel.auto,
    context: ContextAttention = ContextAttention.ring,
) -> jax.Array:
    """softmax(scale q k^T + bias + mask) v (Vaswani et al. 2017, equation 1); K key heads serve N / K query heads each.

    Args:
        segments: int [B, T] of the queries and int [B, S] of the keys; one sees only its own. None: one segment.
        bias_NTS: float32, added to the scores of all rows.
        window: positions each one sees: with `causal` the last so many, itself included; without, half of them on
            each side. 0 for all.
        softcap: cap * tanh(scores / cap) before the mask; 0 for none.
        scale: 0 for 1/sqrt(H).
        context: what is done where the mesh splits the sequences; a ring has no other kernel than xla.

    Returns:
        [B, T, N, H] in q's dtype. Scores and softmax are float32.
    """
    if softcap and bias_NTS is not None:
        raise ValueError(f"softcap={softcap} with a bias of the scores: no model has both")
    options = Options(causal, window, softcap, scale or q_BTNH.shape[-1] ** -0.5)
    axes, seq_len, num_keys = split_axes(), q_BTNH.shape[1], k_BSKH.shape[1]
    split = "context" in axes and seq_dim(seq_len) is not None and seq_dim(num_keys) is not None
    ring = split and context is ContextAttention.ring
    if bias_NTS is not None:
        bias_NTS = reshard(bias_NTS, ("heads", "seq" if ring else None, None))
    args = (q_BTNH, k_BSKH, v_BSKH, segments, bias_NTS)
    if ring:
        return ring_attention(*args, options)
    lengths: Any = (seq_len, num_keys)
    common = 1 if any(map(is_symbolic_dim, lengths)) else math.gcd(*lengths)
    kernel = choose_kernel(
        kernel, backend=attention_backend(), dtype=q_BTNH.dtype, head_size=q_BTNH.shape[-1],
        seq_len=common, softcap=softcap, bias=bias_NTS is not None,
        two_sided=bool(window) and not causal, apart=segments is not None, capability=gpu_capability(),
    )  # fmt: skip
    local = partial({Kernel.xla: _xla, Kernel.cudnn: _cudnn, Kernel.splash: _splash}[kernel], options)
    if split:
        return exchange_heads(local, *args)
    if "context" in axes:  # single tokens against many, while decoding
        args = (*(reshard(x, _HEADS) for x in args[:3]), segments, bias_NTS)
    return local(*args) if kernel is Kernel.xla else _per_device(local, *args)


def _per_device(local, q, k, v, segments, bias):
    """Runs a kernel that XLA cannot partition on each device's own batch rows and heads."""
    assert bias is None
    if (spec := current_spec(_HEADS)) is None:
        return local(q, k, v, segments, None)
    rows = PartitionSpec(*spec[:2])
    specs = (spec, spec, spec, None if segments is None else (rows, rows), None)
    return on_each_device(local, specs, spec, check=False)(q, k, v, segments, None)


def _xla(options: Options, q, k, v, segments, bias):
    return blockwise_attention(q, k, v, segments, bias, options)


def _cudnn(options: Options, q, k, v, segments, _bias):
    mask = None if segments is None else (segments[0][:, :, None] == segments[1][:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, scale=options.scale, is_causal=options.causal, implementation="cudnn",
        local_window_size=(options.window - 1, 0) if options.window else None,
    )  # fmt: skip


def _splash(options: Options, q, k, v, segments, _bias):
    """The TPU kernel, one call a key head with its group of query heads; interpreted where there is no TPU."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    seq, keys, groups = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    if options.window:
        mask = masks.LocalMask((seq, keys), reach(options), offset=0)
    else:
        mask = masks.CausalMask((seq, keys)) if options.causal else masks.FullMask((seq, keys))
    rows, columns = (next(size for size in _SPLASH_BLOCKS if length % size == 0) for length in (seq, keys))
    blocks = splash.BlockSizes(
        block_q=rows, block_kv=columns, block_q_dkv=rows, block_kv_dkv=columns, block_q_dq=rows, block_kv_dq=columns
    )
    kernel = splash.make_splash_mqa_single_device(
        masks.MultiHeadMask([mask] * groups), block_sizes=blocks, attn_logits_soft_cap=options.softcap or None,
        interpret=attention_backend() != "tpu", residual_checkpoint_name="attended",
    )  # fmt: skip
    grouped = (q * options.scale).reshape(*q.shape[:2], k.shape[2], groups, q.shape[-1]).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    ids = None if segments is None else splash.SegmentIds(*segments)
    heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out: Any = jax.vmap(heads, in_axes=(0, 0, 0, None if ids is None else 0))(grouped, k, v, ids)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)
