"""A mixture of experts in place of the MLP: dropless, every token reaches the experts it was sent to."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from lmkit.config.model import TransformerConfig
from lmkit.config.sections import ParamKind
from lmkit.nn.linear import Linear
from lmkit.nn.mlp import ACTIVATIONS
from lmkit.nn.param import param
from lmkit.parallel.rules import current_spec, gathered_dims, on_each_device, residual_dims, split_axes


class MoE(nnx.Module):
    """sum over the best experts of weight * expert(x) (Shazeer et al. 2017, equations 1 to 5, without noise).

    The router's softmax runs over all experts in float32; with `renormalize_experts` the chosen weights are divided
    by their sum, which is Mixtral's softmax over the chosen (Jiang et al. 2024, section 2.1).
    """

    def __init__(self, config: TransformerConfig, *, residual_std: float | None, rngs: nnx.Rngs):
        self.config = config
        experts, embed, mlp = config.num_experts, config.embed_dim, config.mlp_size
        self.router = Linear({"embed": embed}, {"expert": experts}, std=config.init_std, bias=False, rngs=rngs)

        def matrices(dims: tuple[str, ...], shape: tuple[int, ...], std: float | None) -> nnx.Param:
            value = jnp.zeros(shape) if std is None else jax.random.normal(rngs.params(), shape, jnp.float32)
            return param((std or shape[1] ** -0.5) * value, dims, ParamKind.matrix, num_in=1)

        inner = (("expert", "embed", "mlp"), (experts, embed, mlp), config.init_std)
        self.up = matrices(*inner)
        self.gate = matrices(*inner) if config.gated else None
        self.down = matrices(("expert", "mlp", "embed"), (experts, mlp, embed), residual_std)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] gathered over the sequence to [B, T, D] in the residual stream's layout."""
        config, dtype = self.config, x_BTD.dtype
        logits_BTE = self.router(x_BTD.astype(jnp.float32), out=(*gathered_dims(x_BTD.shape[1])[:2], None))
        weights, experts = lax.top_k(jax.nn.softmax(logits_BTE, axis=-1), config.experts_per_token)
        if config.renormalize_experts:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        kernels = [self.up[...], None if self.gate is None else self.gate[...], self.down[...]]
        kernels = [None if kernel is None else kernel.astype(dtype) for kernel in kernels]
        local = partial(_run_experts, ACTIVATIONS[config.activation])
        args = (x_BTD, weights.astype(dtype), experts, *kernels)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return local(*args)
        axes, out = split_axes(), residual_dims(x_BTD.shape[1])  # a mesh of one device too: ragged_dot wants no types
        rows = current_spec(gathered_dims(x_BTD.shape[1])) or PartitionSpec()
        inner = current_spec(("expert", "embed", "mlp")) or PartitionSpec()
        outer = current_spec(("expert", "mlp", "embed")) or PartitionSpec()
        tensor = "tensor" in axes
        local = partial(local, fsdp="fsdp" in axes, tensor=tensor, scatter=tensor and "seq_norm" in out)
        specs = (rows, rows, rows, inner, None if self.gate is None else inner, outer)
        return on_each_device(local, specs, current_spec(out) or PartitionSpec())(*args)


def _run_experts(activate, x_BTD, weights_BTk, experts_BTk, up, gate, down, *, fsdp=False, tensor=False, scatter=False):
    """One device's tokens through all experts: sorted by expert, three grouped products, put back and summed.

    The matrices are gathered over `fsdp` here, so that their gradients are reduce-scattered; `tensor` splits F.
    """
    if fsdp:
        up = lax.all_gather(up, "fsdp", axis=1, tiled=True)
        gate = None if gate is None else lax.all_gather(gate, "fsdp", axis=1, tiled=True)
        down = lax.all_gather(down, "fsdp", axis=2, tiled=True)
    batch, seq, width = x_BTD.shape
    order = jnp.argsort(experts_BTk.reshape(-1), stable=True)
    token = order // experts_BTk.shape[-1]
    sizes = jnp.bincount(experts_BTk.reshape(-1), length=up.shape[0]).astype(jnp.int32)
    sorted_nD = x_BTD.reshape(-1, width)[token]
    hidden_nF = lax.ragged_dot(sorted_nD, up, sizes)
    hidden_nF = activate(hidden_nF) if gate is None else activate(lax.ragged_dot(sorted_nD, gate, sizes)) * hidden_nF
    each_nD = lax.ragged_dot(hidden_nF, down, sizes) * weights_BTk.reshape(-1)[order, None]
    y_BTD = jnp.zeros((batch * seq, width), x_BTD.dtype).at[token].add(each_nD).reshape(batch, seq, width)
    if scatter:
        return lax.psum_scatter(y_BTD, "tensor", scatter_dimension=1, tiled=True)
    return lax.psum(y_BTD, "tensor") if tensor else y_BTD
