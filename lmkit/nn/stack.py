"""A stack of equal blocks: parameters stacked over layers, one scan, a remat policy."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.arithmetic.pipeline import STAGE
from lmkit.config.base import ConfigError
from lmkit.config.sections.model import Remat, TransformerConfig
from lmkit.nn.attention import LayerInputs
from lmkit.nn.auxiliary import Auxiliary, emit
from lmkit.nn.cache import Cache, NewKeysValues, first_rows
from lmkit.nn.forms import decoding_unroll, in_place
from lmkit.nn.pipeline import one_layer, pipelined
from lmkit.nn.slots import Slots
from lmkit.nn.turned import Turned
from lmkit.parallel.rules import row_numbers, split_axes

_NAMES = ("attention", "cross", "mlp")
_policies = jax.checkpoint_policies


def _is_cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether these are the results of cuDNN's attention, which has no names for them."""
    return primitive.name.startswith("dot_product_attention_fwd")


POLICIES: dict[Remat, Callable | None] = {
    Remat.dots: _policies.save_from_both_policies(
        _policies.save_only_these_names("product", "attended", "log_sum"), _is_cudnn
    ),
    Remat.names: _policies.save_only_these_names(*_NAMES),
    Remat.offload: _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_NAMES),
        offload_src="device",
        offload_dst="pinned_host",
    ),
    Remat.full: _policies.nothing_saveable,
}


class Stack(nnx.Module):
    """As many blocks as `config.num_layers` says (or `num_layers`), made by `make_block(rngs)`.

    Every parameter of the block gains a leading "layers" dim. `remat`, `scan_layers`, `microbatches` and `rounds` of
    the configuration decide how the layers run, not how they are stored, so a checkpoint fits any of them.
    """

    def __init__(
        self, make_block: Callable[[nnx.Rngs], nnx.Module], config: TransformerConfig, *, num_layers: int | None = None,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.num_layers = config.num_layers if num_layers is None else num_layers
        self.remat, self.scan = config.remat, config.scan_layers
        self.microbatches, self.rounds = config.microbatches, config.rounds
        self.blocks = stacked(make_block, self.num_layers, rngs)

    def __call__(
        self, x_BTD: jax.Array, inputs: LayerInputs, *, flags: bool | jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """x through block(x, inputs, flag, layer_key) of each layer in turn; over the stages of the mesh, if any.

        What layers put into `inputs.auxiliary` (a mixture's sums over tokens) is handed out, stacked over layers, to
        `lmkit.nn.auxiliary.collecting`.

        Args:
            flags: one bool for all layers, or bool [L] with each layer's own.
            key: switches dropout on; each layer folds in its number.
        """
        graph, state = nnx.split(self.blocks)
        each = None if isinstance(flags, bool) else flags
        run = partial(self._run, graph, flags)
        layers = (nnx.to_pure_dict(state), each, jnp.arange(self.num_layers))
        if self._staged:
            if key is not None:
                inputs = inputs._replace(rows_B=row_numbers(x_BTD.shape[0]))
            options = {"microbatches": self.microbatches, "rounds": self.rounds}
            x_BTD, auxiliary = pipelined(run, layers, x_BTD, inputs, key, **options)
        else:
            x_BTD, auxiliary = run(layers, inputs, x_BTD, key)
        emit(auxiliary)
        return x_BTD

    def _run(self, graph, flags, layers, inputs: LayerInputs, x_BTD: jax.Array, key: jax.Array | None):
        """Some layers, each leaf [l, ...] of (parameters, flags, numbers): the stream, and what they hand out."""

        def layer(x_BTD, xs):
            params, flag, index = xs
            block = nnx.merge(graph, nnx.State(params))
            layer_key = None if key is None else jax.random.fold_in(key, index)
            auxiliary: Auxiliary = {}
            mine = inputs._replace(auxiliary=auxiliary)
            return block(x_BTD, mine, flags if flag is None else flag, layer_key), auxiliary

        if self.remat is not Remat.none:
            layer = jax.checkpoint(layer, policy=POLICIES[self.remat], prevent_cse=not self.scan)
        if self.scan:
            return jax.lax.scan(layer, x_BTD, layers)
        leaves, tree = jax.tree.flatten(layers)
        unstacked = [jnp.unstack(leaf) for leaf in leaves]  # its transpose stacks; slicing's would add full arrays
        every = []
        for one in zip(*unstacked, strict=True):
            x_BTD, auxiliary = layer(x_BTD, tree.unflatten(one))
            every.append(auxiliary)
        return x_BTD, jax.tree.map(lambda *each: jnp.stack(each), *every) if every else {}

    def extend(
        self, x_BTD: jax.Array, inputs: LayerInputs, cache: Cache, *, flags: bool | jax.Array
    ) -> tuple[jax.Array, NewKeysValues]:
        """New tokens after those of the cache: their stream, and their keys and values in each layer [L, ...].

        A layer reads its share of the cache and hands out what is new: were the cache carried through the scan, every
        step would copy it. Over stages there is no pipeline: each has its rows, and the layers come by one at a time.
        On one CPU, matrices that are turned (nn/turned.py), and the cache (nn/slots.py), are read where they are: the
        scan would copy each slice.
        """
        graph, state = nnx.split(self.blocks)
        layer_cache = inputs.layer_cache
        assert layer_cache is not None
        cross = None if cache.cross is None else (cache.cross.k_LBMKH, cache.cross.v_LBMKH)

        def layer(x_BTD, xs):
            number, params, flag, (*slots, cross) = xs
            if where:
                k_BSKH, v_BSKH = (Slots(one, number, x_BTD.shape[0]) for one in cache[:2])
            else:
                k_BSKH, v_BSKH = (first_rows(one, x_BTD.shape[0]) for one in slots)
            mine = layer_cache._replace(k_BSKH=k_BSKH, v_BSKH=v_BSKH, cross=cross, new={})
            params = (
                one_layer(every, number) if staged else jax.tree.map(partial(_read, number), every, params, **whole)
            )
            block = nnx.merge(graph, nnx.State(params))
            x_BTD = block(x_BTD, inputs._replace(layer_cache=mine), flags if flag is None else flag, None)
            if not mine.new:
                raise ConfigError(f"{type(block).__name__} cannot decode: it does not go through lmkit.nn.attention")
            return x_BTD, mine.new

        each, staged, every = None if isinstance(flags, bool) else flags, self._staged, nnx.to_pure_dict(state)
        whole: Any = {"is_leaf": lambda one: isinstance(one, Turned)}
        sliced = None if staged else jax.tree.map(lambda one: None if isinstance(one, Turned) else one, every, **whole)
        where = in_place(cache.k_LBSKH, x_BTD.shape[1])
        slots = (None, None) if where else (cache.k_LBSKH, cache.v_LBSKH)
        xs = (jnp.arange(self.num_layers), sliced, each, (*slots, cross))
        return jax.lax.scan(layer, x_BTD, xs, unroll=decoding_unroll(self.scan, self.num_layers))

    @property
    def _staged(self) -> bool:
        """Whether its layers lie over the stages of the mesh: those of a stack of one do not."""
        return STAGE in split_axes() and self.num_layers > 1


def _read(number: jax.Array, every: jax.Array | Turned, own: jax.Array | None) -> Any:
    """A layer's own slice, or where it finds it."""
    return every.of_layer(number) if isinstance(every, Turned) else own


def stacked(make: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`num_layers` modules as one, whose parameters have a leading dim: "layers", or "layer" where it is only one."""
    dim = "layers" if num_layers > 1 else "layer"
    metadata = {nnx.PARTITION_NAME: dim, "logical_axes": dim}
    each = nnx.vmap(lambda key: make(nnx.Rngs(key)), transform_metadata=metadata)
    return each(jax.random.split(rngs.params(), num_layers))
