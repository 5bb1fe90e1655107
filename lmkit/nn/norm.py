"""Normalisation over the last dim, in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.sections.model import Norm, TransformerConfig
from lmkit.config.sections.optim import ParamKind
from lmkit.nn.forms import scaled
from lmkit.nn.param import param


class RMSNorm(nnx.Module):
    """x / rms(x) * (offset + scale) (Zhang and Sennrich 2019, equation 4). The scale starts at 1 - offset."""

    def __init__(self, size: int, *, eps: float, offset: float = 0.0):
        self.eps, self.offset = eps, offset
        self.scale = param(jnp.full(size, 1.0 - offset), ("norm",), ParamKind.vector)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D] in x's dtype."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return scaled(y, self.offset + self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / std * scale + bias (Ba et al. 2016, equation 3)."""

    def __init__(self, size: int, *, eps: float, bias: bool):
        self.eps = eps
        self.scale = param(jnp.ones(size), ("norm",), ParamKind.vector)
        self.bias = param(jnp.zeros(size), ("norm",), ParamKind.vector) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D] in x's dtype."""
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y = scaled(y, self.scale[...])
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


def stream_norm(config: TransformerConfig) -> RMSNorm | LayerNorm:
    """A norm of the residual stream, of the kind that the model asks for."""
    if config.norm is Norm.layernorm:
        return LayerNorm(config.embed_dim, eps=config.norm_eps, bias=config.bias)
    return RMSNorm(config.embed_dim, eps=config.norm_eps, offset=config.norm_offset)
