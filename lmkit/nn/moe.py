"""A mixture of experts in place of the MLP: the router, the experts it chooses, and those that every token meets."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from lmkit.config.sections.model import TransformerConfig
from lmkit.config.sections.optim import ParamKind
from lmkit.nn.attention import LayerInputs
from lmkit.nn.forms import expert_block, grouped_product
from lmkit.nn.linear import Linear
from lmkit.nn.mlp import MLP, activate
from lmkit.nn.param import param
from lmkit.nn.random import normal
from lmkit.parallel.expert import dropless, with_capacity
from lmkit.parallel.rules import current_spec, gathered_dims, on_each_device, residual_dims, seq_dim, split_axes


class MoE(nnx.Module):
    """sum over the best experts of weight * expert(x) (Shazeer et al. 2017, equations 1 to 5, without noise).

    The router's logits and its softmax over all experts are float32. With `renormalize_experts` the chosen weights are
    divided by their sum, which is Mixtral's softmax over the chosen (Jiang et al. 2024, section 2.1). With
    `shared_experts` an MLP of so many experts' width is added, for every token (DeepSeekMoE, Dai et al. 2024,
    section 3.2).

    With `capacity_factor` an expert takes the first `capacity` tokens of a row that choose it; what it does not take
    passes by it, so a layer's result depends on the row alone, and causally. While decoding nothing is dropped.
    """

    def __init__(self, config: TransformerConfig, *, residual_std: float | None, rngs: nnx.Rngs):
        self.config = config
        experts, embed, mlp = config.num_experts, config.embed_dim, config.mlp_size
        self.router = Linear(
            {"embed": embed}, {"expert": experts}, std=config.init_std, bias=False, rngs=rngs, exact=True
        )

        def matrices(dims: tuple[str, ...], shape: tuple[int, ...], std: float | None) -> nnx.Param:
            value = jnp.zeros(shape) if std is None else normal(rngs.params(), shape)
            return param((std or shape[1] ** -0.5) * value, dims, ParamKind.matrix, num_in=1)

        inner = (("expert", "embed", "mlp"), (experts, embed, mlp), config.init_std)
        self.up = matrices(*inner)
        self.gate = matrices(*inner) if config.gated else None
        self.down = matrices(("expert", "mlp", "embed"), (experts, mlp, embed), residual_std)
        wide = dataclasses.replace(config, mlp_dim=config.shared_experts * mlp)
        self.shared = MLP(wide, residual_std=residual_std, rngs=rngs) if config.shared_experts else None

    def __call__(self, x_BTD: jax.Array, inputs: LayerInputs | None = None) -> jax.Array:
        """[B, T, D] gathered over the sequence to [B, T, D] in the residual stream's layout.

        The router's sums over tokens go to `inputs.auxiliary`, where there is one.
        """
        config, seq_len = self.config, x_BTD.shape[1]
        inputs = inputs or LayerInputs()
        logits_BTE = self.router(x_BTD.astype(jnp.float32), out=(*gathered_dims(seq_len)[:2], None))
        probabilities_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        weights_BTk, choices_BTk = lax.top_k(probabilities_BTE, config.experts_per_token)
        capacity = 0 if inputs.layer_cache is not None else capacity_of(config, seq_len)
        if inputs.auxiliary is not None:
            assert not inputs.auxiliary, "a block with two mixtures has no place for the sums of the second"
            inputs.auxiliary.update(router_sums(logits_BTE, probabilities_BTE, choices_BTk, capacity))
        if config.renormalize_experts:
            weights_BTk = weights_BTk / jnp.sum(weights_BTk, axis=-1, keepdims=True)
        y_BTD = self._routed(x_BTD, weights_BTk.astype(x_BTD.dtype), choices_BTk, capacity)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD)

    def _routed(self, x_BTD, weights_BTk, choices_BTk, capacity: int) -> jax.Array:
        kernels = [self.up[...], None if self.gate is None else self.gate[...], self.down[...]]
        kernels = [None if kernel is None else kernel.astype(x_BTD.dtype) for kernel in kernels]
        args = (x_BTD, weights_BTk, choices_BTk, *kernels)
        local = partial(_on_device, partial(activate, self.config.activation), self.config.num_experts, capacity)
        if jax.sharding.get_abstract_mesh().empty:
            return local(frozenset(), *args)
        axes, out = set(split_axes()), residual_dims(x_BTD.shape[1])
        if seq_dim(x_BTD.shape[1]) is None:
            axes -= {"context"}  # each of its devices has the rows whole
        if "tensor" in axes and "seq_norm" in out:
            axes |= {"scatter"}
        rows = current_spec(gathered_dims(x_BTD.shape[1])) or PartitionSpec()
        inner = current_spec(("expert", "embed", "mlp")) or PartitionSpec()
        outer = current_spec(("expert", "mlp", "embed")) or PartitionSpec()
        specs = (rows, rows, rows, inner, None if self.gate is None else inner, outer)
        # on a mesh of one device, too: ragged_dot wants no types
        return on_each_device(partial(local, frozenset(axes)), specs, current_spec(out) or PartitionSpec())(*args)


def capacity_of(config: TransformerConfig, seq_len: int) -> int:
    """Tokens of a row of so many that an expert takes; 0 where it takes all."""
    if not config.capacity_factor:
        return 0
    even = config.experts_per_token * seq_len / config.num_experts
    return min(math.ceil(config.capacity_factor * even - 1e-9), seq_len)  # 1.1 * 10 is a little more than 11


def router_sums(logits_BTE, probabilities_BTE, choices_BTk, capacity: int) -> dict[str, jax.Array]:
    """What the losses and figures of a router are made of: float32 sums over all tokens of the global batch.

    chosen [E]: how often each expert was. probability [E]: the softmax. z: the square of log Z. dropped: choices that
    an expert had no room for. tokens: how many there are.
    """
    picked_BTkE = choices_BTk[..., None] == jnp.arange(logits_BTE.shape[-1])
    chosen_BE = jnp.sum(picked_BTkE, axis=(1, 2), dtype=jnp.float32)
    return {
        "chosen": jnp.sum(chosen_BE, axis=0),
        "probability": jnp.sum(probabilities_BTE, axis=(0, 1)),
        "z": jnp.sum(jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))),
        "dropped": jnp.sum(jnp.maximum(chosen_BE - capacity, 0.0)) if capacity else jnp.zeros(()),
        "tokens": jnp.full((), math.prod(logits_BTE.shape[:2]), jnp.float32),
    }


def _on_device(activate, num_experts, capacity, axes, x_BTD, weights_BTk, choices_BTk, up, gate, down):
    """One device's share of the mixture.

    The matrices are gathered over `fsdp` here, so that their gradients are reduce-scattered; `tensor` splits F.
    """
    if "fsdp" in axes:
        up = lax.all_gather(up, "fsdp", axis=1, tiled=True)
        gate = None if gate is None else lax.all_gather(gate, "fsdp", axis=1, tiled=True)
        down = lax.all_gather(down, "fsdp", axis=2, tiled=True)
    if "tensor" in axes:  # so that gradients are summed over it here, once, and not for each copy of a token
        x_BTD, weights_BTk = (lax.pcast(x, "tensor", to="varying") for x in (x_BTD, weights_BTk))

    def run(x, multiply):
        def product(x, matrices):
            return checkpoint_name(multiply(x, matrices), "product")

        hidden = product(x, up)
        hidden = activate(hidden) if gate is None else activate(product(x, gate)) * hidden
        return product(hidden, down)

    expert, context = "expert" in axes, "context" in axes
    if capacity:
        y_BTD = with_capacity(
            run, x_BTD, weights_BTk, choices_BTk, num_experts, capacity, expert=expert, context=context
        )
    else:
        block = expert_block(choices_BTk.size, len(up))
        y_BTD = dropless(run, x_BTD, weights_BTk, choices_BTk, len(up), grouped_product, block, expert=expert)
    if "scatter" in axes:
        return lax.psum_scatter(y_BTD, "tensor", scatter_dimension=1, tiled=True)
    return lax.psum(y_BTD, "tensor") if "tensor" in axes else y_BTD
