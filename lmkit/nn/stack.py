"""A stack of equal blocks: parameters stacked over layers, one scan, a remat policy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.base import ConfigError
from lmkit.config.model import Remat
from lmkit.nn.attention import Places
from lmkit.nn.cache import Cache, Kept
from lmkit.nn.kept import Sums, hand_out

_NAMES = ("attention", "cross", "mlp")
_policies = jax.checkpoint_policies
POLICIES: dict[Remat, Callable | None] = {
    Remat.dots: _policies.dots_with_no_batch_dims_saveable,
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
    """`num_layers` blocks made by `make_block(rngs)`.

    Every parameter of the block gains a leading "layers" dim. `scan` decides how the layers run, not how they
    are stored, so a checkpoint fits either way.
    """

    def __init__(
        self, make_block: Callable[[nnx.Rngs], nnx.Module], num_layers: int, *, remat: Remat, scan: bool, rngs: nnx.Rngs
    ):
        self.num_layers, self.remat, self.scan = num_layers, remat, scan
        self.blocks = stacked(make_block, num_layers, rngs)

    def __call__(self, x: jax.Array, *shared, flags: bool | jax.Array, key: jax.Array | None = None) -> jax.Array:
        """x through block(x, *shared, flag, layer_key) of each layer in turn.

        What layers put into `kept` of a `Places` in `shared` (a mixture's sums over tokens) is handed out, stacked
        over layers, to `lmkit.nn.kept.collecting`.

        Args:
            flags: one bool for all layers, or bool [L] with each layer's own.
            key: switches dropout on; each layer folds in its number.
        """
        graph, state = nnx.split(self.blocks)
        params = nnx.to_pure_dict(state)

        def layer(x, xs):
            params, flag, index = xs
            block = nnx.merge(graph, nnx.State(params))
            layer_key = None if key is None else jax.random.fold_in(key, index)
            kept: Sums = {}
            mine = [one._replace(kept=kept) if isinstance(one, Places) else one for one in shared]
            return block(x, *mine, flags if flag is None else flag, layer_key), kept

        if self.remat is not Remat.none:
            layer = jax.checkpoint(layer, policy=POLICIES[self.remat], prevent_cse=not self.scan)
        each = None if isinstance(flags, bool) else flags
        if self.scan:
            x, kept = jax.lax.scan(layer, x, (params, each, jnp.arange(self.num_layers)))
            hand_out(kept)
            return x
        leaves, tree = jax.tree.flatten(params)
        unstacked = [jnp.unstack(leaf) for leaf in leaves]  # its transpose stacks; slicing's would add full arrays
        sums = []
        for index in range(self.num_layers):
            one = tree.unflatten([layers[index] for layers in unstacked])
            x, kept = layer(x, (one, None if each is None else each[index], index))
            sums.append(kept)
        if sums:
            hand_out(jax.tree.map(lambda *layers: jnp.stack(layers), *sums))
        return x

    def extend(
        self, x_BTD: jax.Array, places: Places, cache: Cache, *, flags: bool | jax.Array
    ) -> tuple[jax.Array, Kept]:
        """New tokens after those of the cache: their stream, and their keys and values in each layer [L, ...].

        A layer reads its share of the cache and hands out what is new: were the cache carried through the scan, every
        step would copy it.
        """
        graph, state = nnx.split(self.blocks)
        past = places.past
        assert past is not None
        cross = None if cache.cross is None else (cache.cross.k_LBMKH, cache.cross.v_LBMKH)

        def layer(x_BTD, xs):
            params, flag, (k_BSKH, v_BSKH, cross) = xs
            mine = past._replace(k_BSKH=k_BSKH, v_BSKH=v_BSKH, cross=cross, kept={})
            block = nnx.merge(graph, nnx.State(params))
            x_BTD = block(x_BTD, places._replace(past=mine), flags if flag is None else flag, None)
            if not mine.kept:
                raise ConfigError(f"{type(block).__name__} cannot decode: it does not go through lmkit.nn.attention")
            return x_BTD, mine.kept

        each = None if isinstance(flags, bool) else flags
        xs = (nnx.to_pure_dict(state), each, (cache.k_LBSKH, cache.v_LBSKH, cross))
        return jax.lax.scan(layer, x_BTD, xs, unroll=1 if self.scan else self.num_layers)


def stacked(make: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`num_layers` modules as one, whose parameters have a leading "layers" dim."""
    metadata = {nnx.PARTITION_NAME: "layers", "logical_axes": "layers"}
    each = nnx.vmap(lambda key: make(nnx.Rngs(key)), transform_metadata=metadata)
    return each(jax.random.split(rngs.params(), num_layers))
