"""Cross-entropy over a large vocabulary without ever holding the [B, T, V] logits.

The tokens of each device run in chunks. Because the loss is a sum, its gradient is known up to one scalar while
the logits are at hand, so the forward pass makes it and nothing is computed twice: three matrix multiplications
a chunk, as with full logits. Under a mesh this is one shard_map whose collectives are all written out:
the head is gathered over `fsdp` once, not once a chunk, and its gradient is reduced once, at the end.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lmkit.nn.check import check_shape
from lmkit.nn.forms import exact_einsum, head_gradient, picked
from lmkit.nn.product import contract
from lmkit.parallel.rules import BATCH_AXES, RULES, current_spec, on_each_device, residual_dims, seq_dim, split_axes

_HEAD, _BIAS = ("vocab", "embed"), ("vocab",)


class _Options(NamedTuple):
    chunk_tokens: int
    z_loss: float
    label_smoothing: float
    softcap: float
    vocab_size: int
    tokens: tuple[str, ...]  # mesh axes of size > 1 that split the tokens: rows, and places in them
    fsdp: bool
    tensor: bool
    split_seq: bool  # the hidden states' sequence is split over `tensor`


def cross_entropy(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    bias_V: jax.Array | None = None,
    *,
    chunk_tokens: int = 0,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted sums over tokens of (loss, plain negative log-likelihood, correct predictions), float32.

    Args:
        hidden_BTD: compute dtype, sharded over the sequence too under `tensor`.
        head_VD: float32; cast to the compute dtype for the products, which accumulate in float32.
        bias_V: float32, added to the logits.
        chunk_tokens: tokens of a device whose logits exist at once; 0 for all.
        z_loss: adds z_loss * log(Z)^2 (PaLM, Chowdhery et al. 2022, section 5).
        label_smoothing: target (1 - e) one-hot + e uniform (Szegedy et al. 2016, section 7).
        softcap: cap * tanh(logits / cap) first.

    Only the loss is differentiable, with respect to hidden_BTD, head_VD and bias_V. Raises ConfigError for targets or
    weights of another shape than the hidden states.
    """
    check_shape("targets", targets_BT, hidden_BTD.shape[:2], "the hidden states are", ints=True)
    check_shape("weights", weights_BT, hidden_BTD.shape[:2], "the hidden states are")
    axes, seq_len = split_axes(), hidden_BTD.shape[1]
    splitting = BATCH_AXES + (RULES["seq"] if seq_dim(seq_len) else ())
    tokens = tuple(axis for axis in splitting if axis in axes)
    tensor = "tensor" in axes
    options = _Options(
        chunk_tokens, z_loss, label_smoothing, softcap, head_VD.shape[0], tokens, "fsdp" in axes,
        tensor,
        tensor and "seq_norm" in residual_dims(seq_len),
    )  # fmt: skip
    return _cross_entropy(options, hidden_BTD, head_VD, bias_V, targets_BT, weights_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(options, hidden, head, bias, targets, weights):
    return _sharded(options, False, hidden, head, bias, targets, weights)[0]


def _forward(options, hidden, head, bias, targets, weights):
    sums, gradients = _sharded(options, True, hidden, head, bias, targets, weights)
    return sums, (*gradients, jnp.zeros((), hidden.dtype), jnp.zeros((), head.dtype))


def _backward(options, saved, cotangents):
    d_hidden, d_head, d_bias, like, like_head = saved
    d_loss = cotangents[0]
    d_bias = None if d_bias is None else d_loss * d_bias
    return (d_loss * d_hidden).astype(like.dtype), (d_loss * d_head).astype(like_head.dtype), d_bias, None, None


_cross_entropy.defvjp(_forward, _backward)


def _sharded(options: _Options, gradients: bool, *arrays):
    """`_local` on each device's shard."""
    local = partial(_local, options, gradients)
    hidden = current_spec(residual_dims(arrays[0].shape[1]))
    if hidden is None:
        return local(*arrays)
    tokens = current_spec(("batch", seq_dim(arrays[0].shape[1])))
    head, scalar = current_spec(_HEAD), PartitionSpec()
    bias = None if arrays[2] is None else current_spec(_BIAS)
    specs, out = (hidden, head, bias, tokens, tokens), ((scalar,) * 3, (hidden, head, bias) if gradients else ())
    return on_each_device(local, specs, out, check=False)(*arrays)


def _local(options: _Options, gradients: bool, hidden, head, bias, targets, weights):
    """The sums, and with `gradients` those of the summed loss, of one device's tokens and slice of the vocabulary."""
    head = head.astype(hidden.dtype)  # before the gather: half the bytes in bfloat16
    if options.fsdp:
        head = lax.all_gather(head, "fsdp", axis=1, tiled=True)
    if options.split_seq:
        hidden = lax.all_gather(hidden, "tensor", axis=1, tiled=True)
    shape, tokens = hidden.shape, targets.size
    chunks = -(-tokens // options.chunk_tokens) if options.chunk_tokens else 1
    padding = -tokens % chunks
    xs = (hidden.reshape(tokens, -1), targets.reshape(-1), weights.reshape(-1))
    xs = jax.tree.map(
        lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, -1, *x.shape[1:]), xs
    )
    step = partial(_chunk, options, gradients, head, bias)
    d_bias = None if bias is None else jnp.zeros_like(bias)
    zeros = (jnp.zeros(3), (jnp.zeros(head.shape, jnp.float32), d_bias) if gradients else ())
    d_hidden: Any
    d_weights: Any
    if chunks == 1:
        (sums, d_weights), d_hidden = step(zeros, jax.tree.map(lambda x: x[0], xs))
    else:
        (sums, d_weights), d_hidden = lax.scan(step, zeros, xs)
    if options.tokens:
        sums = lax.psum(sums, options.tokens)
    if not gradients:
        return tuple(sums), ()
    d_hidden = d_hidden.reshape(-1, shape[-1])[:tokens].reshape(shape)
    d_head, d_bias = d_weights
    if options.split_seq:
        d_hidden = lax.psum_scatter(d_hidden, "tensor", scatter_dimension=1, tiled=True)
    elif options.tensor:
        d_hidden = lax.psum(d_hidden, "tensor")
    if options.tokens and d_bias is not None:
        d_bias = lax.psum(d_bias, options.tokens)
    return tuple(sums), (d_hidden, _summed(options, d_head, head.dtype), d_bias)


def _summed(options: _Options, d_head: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The head's gradient over all tokens, each device's own columns. It travels in the compute dtype, as others do."""
    if not options.tokens:
        return d_head
    d_head = d_head.astype(dtype)
    if options.fsdp:
        # The parts as a dim of their own: of the plain form XLA makes an all-reduce of the whole on a TPU wherever the
        # slice of the vocabulary is not a multiple of 128.
        d_head = d_head.reshape(d_head.shape[0], lax.axis_size("fsdp"), -1)
        d_head = lax.psum_scatter(d_head, "fsdp", scatter_dimension=1)
    others = tuple(axis for axis in options.tokens if axis != "fsdp")
    return (lax.psum(d_head, others) if others else d_head).astype(jnp.float32)


def _chunk(options: _Options, gradients: bool, head_VD, bias_V, carry, xs):
    """One chunk: logits [n, V], their sums added to the carry, and gradients."""
    (sums, d_weights), (hidden_nD, targets_n, weights_n) = carry, xs
    smooth, size = options.label_smoothing, options.vocab_size
    over_vocab = partial(lax.psum, axis_name="tensor") if options.tensor else lambda x: x
    logits = lax.dot_general(hidden_nD, head_VD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    logits = logits if bias_V is None else logits + bias_V
    if options.softcap:
        capped = jnp.tanh(logits / options.softcap)
        logits = options.softcap * capped
    top_n = jnp.max(logits, axis=1)
    top_n = lax.pmax(top_n, "tensor") if options.tensor else top_n
    exp = jnp.exp(logits - top_n[:, None])
    total_n = over_vocab(jnp.sum(exp, axis=1))
    first = lax.axis_index("tensor") * head_VD.shape[0] if options.tensor else 0
    hit = (targets_n - first)[:, None] == lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    picked_n = over_vocab(picked(logits, targets_n - first, hit))
    log_z_n = top_n + jnp.log(total_n)
    nll_n = log_z_n - picked_n
    loss_n = nll_n + options.z_loss * jnp.square(log_z_n)
    if smooth:
        loss_n += smooth * (picked_n - over_vocab(jnp.sum(logits, axis=1)) / size)
    figures = (loss_n, nll_n, (picked_n >= top_n).astype(jnp.float32))
    sums += jnp.stack([exact_einsum("n,n->", weights_n, x) for x in figures])
    if not gradients:
        return (sums, ()), ()
    scale_n = (1.0 + 2.0 * options.z_loss * log_z_n) / total_n
    d_logits = exp * (scale_n * weights_n)[:, None]
    d_logits -= jnp.where(hit, (weights_n * (1.0 - smooth))[:, None], 0.0)
    if smooth:
        d_logits -= (weights_n * (smooth / size))[:, None]
    if options.softcap:
        d_logits *= 1.0 - jnp.square(capped)
    d_head, d_bias = d_weights
    d_bias = None if d_bias is None else d_bias + jnp.sum(d_logits, axis=0)
    d_logits = d_logits.astype(hidden_nD.dtype)
    d_hidden = contract("nV,VD->nD", d_logits, head_VD)
    d_head += head_gradient(hidden_nD, d_logits)
    return (sums, (d_head, d_bias)), d_hidden
