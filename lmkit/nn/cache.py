"""The memory of decoding: every layer's keys and values of the tokens so far.

L layers, B rows, S slots, T new tokens, X = S + T keys that a new token may see, M inputs of an encoded source.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmkit.config.base import ConfigError
from lmkit.config.sections.model import TransformerConfig
from lmkit.nn.check import check_shape
from lmkit.nn.forms import walks_along_keys
from lmkit.nn.param import compute_dtype
from lmkit.parallel.rules import Dims, current_spec, on_each_device, reshard

SLOT_DIMS: Dims = (None, "batch", None, "kv_heads", "head")  # of every layer
_ROWS: Dims = ("batch", None)
NewKeysValues = dict[str, tuple[jax.Array, jax.Array]]  # what a layer hands out: {"self" or "cross": (keys, values)}


class CrossCache(NamedTuple):
    """Keys and values of an encoded source."""

    k_LBMKH: jax.Array
    v_LBMKH: jax.Array
    segment_ids_BM: jax.Array | None


class Cache(NamedTuple):
    """Keys (turned by their positions) and values in the compute dtype. Rows have their own lengths.

    Slots are a ring: the token with index i of its row (0 for the first) is in slot i % S. Where every layer has a
    window, S is no larger than it.

    Keys and values may be of more rows than the rest: each device's first ones are then meant (`first_rows`), and the
    others stay as they are.
    """

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array
    segment_ids_BS: jax.Array  # int32
    length_B: jax.Array  # int32, tokens so far: the index of the next one
    position_B: jax.Array  # int32, position of the next one; not its index where packed documents restart at 0
    cross: CrossCache | None = None


class LayerCache(NamedTuple):
    """What one layer must know to go on: who sees whom (the same for all layers), and its share of the cache."""

    visible_BTX: jax.Array | None = None  # bool; None with an empty cache, where the kernels of training do
    visible_local_BTX: jax.Array | None = None  # the same in layers with a window
    bias_BNTX: jax.Array | None = None  # of the scores
    k_BSKH: jax.Array | None = None
    v_BSKH: jax.Array | None = None
    cross: tuple[jax.Array, jax.Array] | None = None
    new: NewKeysValues | None = None  # filled by the layer while it is traced


class Step(NamedTuple):
    """Where the new tokens stand."""

    index_BT: jax.Array  # int32, in their rows
    positions_BT: jax.Array
    segment_ids_BT: jax.Array
    key_index_BX: jax.Array  # of the cached keys, negative where a slot is empty, then of the new ones
    layer_cache: LayerCache


def empty_cache(config: TransformerConfig, num_layers: int, batch: int, length: int) -> Cache:
    """Room for `length` tokens a row, or for the window where that is shorter and every layer has it."""
    if batch < 1 or length < 1:
        raise ConfigError(f"a cache for batch={batch} and length={length}: both must be at least 1")
    windows = [config.window_of(layer) for layer in range(num_layers)]
    slots = min(length, max(windows)) if all(windows) else length
    shape = (num_layers, batch, slots, config.kv_heads, config.head_size)
    dtype = compute_dtype(config.dtype)
    k, v = (reshard(jnp.zeros(shape, dtype), SLOT_DIMS) for _ in range(2))
    ids_BS = reshard(jnp.zeros((batch, slots), jnp.int32), _ROWS)
    length_B, position_B = (reshard(jnp.zeros(batch, jnp.int32), _ROWS[:1]) for _ in range(2))
    return Cache(k, v, ids_BS, length_B, position_B)


def check_step(config: TransformerConfig, num_layers: int, tokens_BT: jax.Array, num_new_B: Any, cache: Any) -> None:
    """Raises ConfigError where a cache is not of these rows and this model, or too short for the tokens."""
    if not isinstance(cache, Cache):
        raise ConfigError(f"cache is a {type(cache).__name__}: make one with model.init_cache(batch, length)")
    (rows, num_tokens), (held, slots) = tokens_BT.shape, cache.k_LBSKH.shape[1:3]
    check_shape("num_new_B", num_new_B, (rows,), "the rows of tokens_BT are", ints=True)
    expected = (num_layers, rows, slots, config.kv_heads, config.head_size)
    if cache.k_LBSKH.shape != (num_layers, held, *expected[2:]) or held < rows or len(cache.length_B) != rows:
        raise ConfigError(
            f"cache holds keys of shape {cache.k_LBSKH.shape}, the model with {rows} rows needs {expected}: make one "
            f"with model.init_cache(batch={rows}, length)"
        )
    if num_tokens > slots != config.sliding_window:
        raise ConfigError(
            f"{num_tokens} tokens for a cache of {slots}: make a longer one with model.init_cache(batch, length), or "
            f"give fewer tokens"
        )


def cache_specs(cache: Cache) -> Any:
    """The layout of each array, for shard_map; None where nothing is split."""
    if (kv := current_spec(SLOT_DIMS)) is None:
        return None
    rows, row = current_spec(_ROWS), current_spec(_ROWS[:1])
    cross = cache.cross and CrossCache(kv, kv, None if cache.cross.segment_ids_BM is None else rows)  # type: ignore
    return Cache(kv, kv, rows, row, row, cross)  # type: ignore[arg-type]


def take_rows(cache: Cache, rows_R: jax.Array, *, cross: bool) -> Cache:
    """The cache of these of its rows. `cross`: those of the source, too, else they stay as they are."""
    k, v = cache.k_LBSKH[:, rows_R], cache.v_LBSKH[:, rows_R]
    ids, length, position = (x[rows_R] for x in (cache.segment_ids_BS, cache.length_B, cache.position_B))
    source = cache.cross
    if cross and source is not None:
        memory_ids = None if source.segment_ids_BM is None else source.segment_ids_BM[rows_R]
        source = CrossCache(source.k_LBMKH[:, rows_R], source.v_LBMKH[:, rows_R], memory_ids)
    return Cache(k, v, ids, length, position, source)


def first_rows(x_BSKH: jax.Array, rows: int) -> jax.Array:
    """So many rows of keys or values: the first of each device."""
    total = x_BSKH.shape[0]
    if total == rows:
        return x_BSKH
    spec = current_spec(SLOT_DIMS[1:])
    if spec is None:
        return x_BSKH[:rows]
    return on_each_device(lambda x: x[: len(x) * rows // total], (spec,), spec)(x_BSKH)


def slot_index(length_B: jax.Array, slots: int) -> jax.Array:
    """int32 [B, S]: the index of the token in each slot of rows that hold so many; negative where there is none."""
    last_B1 = length_B[:, None] - 1
    return last_B1 - (last_B1 - jnp.arange(slots)) % slots


def next_step(
    cache: Cache,
    num_tokens: int,
    window: int,
    segment_ids_BT: jax.Array | None,
    positions_BT: jax.Array | None,
    *,
    empty: bool,
) -> Step:
    """Where the next `num_tokens` of each row stand and what they see.

    Args:
        window: of the layers that have one.
        segment_ids_BT: int; None: they belong to their row's last token's, 1 where there is none.
        positions_BT: int; None: they follow their row's last token's.
        empty: the cache holds nothing yet.
    """
    slots = cache.segment_ids_BS.shape[1]
    ahead = jnp.arange(num_tokens)
    index_BT = cache.length_B[:, None] + ahead
    past_BS = slot_index(cache.length_B, slots)
    if positions_BT is None:
        positions_BT = cache.position_B[:, None] + ahead
    if segment_ids_BT is None:
        newest_BS = (past_BS == cache.length_B[:, None] - 1) & (past_BS >= 0)
        newest_B = jnp.sum(jnp.where(newest_BS, cache.segment_ids_BS, 0), axis=1)
        segment_ids_BT = jnp.where(cache.length_B > 0, newest_B, 1)[:, None] + jnp.zeros_like(ahead)
    segment_ids_BT = segment_ids_BT.astype(jnp.int32)
    key_index_BX = jnp.concatenate([past_BS, index_BT], axis=1)
    layer_cache = LayerCache()
    if not empty:
        ids_BX = jnp.concatenate([cache.segment_ids_BS, segment_ids_BT], axis=1)
        distance_BTX = index_BT[:, :, None] - key_index_BX[:, None, :]
        seen = (key_index_BX >= 0)[:, None, :] & (distance_BTX >= 0)
        seen &= segment_ids_BT[:, :, None] == ids_BX[:, None, :]
        layer_cache = LayerCache(seen, seen & (distance_BTX < window) if window else seen)
    return Step(index_BT, positions_BT, segment_ids_BT, key_index_BX, layer_cache)


def extended(
    cache: Cache, new: NewKeysValues, step: Step, num_new_B: jax.Array, memory_ids_BM: jax.Array | None = None
) -> Cache:
    """The cache with the first `num_new_B` of each row's new tokens, whose keys and values [L, B, T, K, H] are `new`.

    What does not fit a ring any more is never written, so no slot is written twice.
    """
    num_tokens, slots = step.index_BT.shape[1], cache.segment_ids_BS.shape[1]
    left_BT = num_new_B[:, None] - jnp.arange(num_tokens)
    slot_BT = jnp.where((left_BT > 0) & (left_BT <= slots), step.index_BT % slots, slots)  # slot S: dropped

    def write(k_LBSKH, v_LBSKH, ids_BS, new_k, new_v, new_ids, slot_BT):
        rows_B1 = jnp.arange(slot_BT.shape[0])[:, None]
        k_LBSKH = k_LBSKH.at[:, rows_B1, slot_BT].set(new_k.astype(k_LBSKH.dtype), mode="drop")
        v_LBSKH = v_LBSKH.at[:, rows_B1, slot_BT].set(new_v.astype(v_LBSKH.dtype), mode="drop")
        return k_LBSKH, v_LBSKH, ids_BS.at[rows_B1, slot_BT].set(new_ids, mode="drop")

    if (kv := current_spec(SLOT_DIMS)) is not None:
        rows = current_spec(_ROWS)
        write = on_each_device(write, (kv, kv, rows, kv, kv, rows, rows), (kv, kv, rows))
    new_k, new_v = (reshard(x, SLOT_DIMS) for x in new["self"])
    k, v, ids_BS = write(cache.k_LBSKH, cache.v_LBSKH, cache.segment_ids_BS, new_k, new_v, step.segment_ids_BT, slot_BT)
    last_BT = jnp.where(left_BT == 1, step.positions_BT + 1, 0)
    position_B = jnp.where(num_new_B > 0, jnp.sum(last_BT, axis=1), cache.position_B)
    cross = CrossCache(*new["cross"], memory_ids_BM) if "cross" in new else cache.cross
    return Cache(k, v, ids_BS, cache.length_B + num_new_B, position_B, cross)


def attend_cached(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    layer_cache: LayerCache,
    visible_BTX: jax.Array,
    *,
    scale: float,
    softcap: float,
) -> jax.Array:
    """Attention of the new tokens to the cached ones and to each other: [B, T, N, H] in q's dtype.

    One softmax over both, in float32; the scores are joined, the cache is not.
    """
    assert layer_cache.k_BSKH is not None
    assert layer_cache.v_BSKH is not None
    batch, seq, heads, size = q_BTNH.shape
    slots, num_keys = layer_cache.k_BSKH.shape[1:3]
    q = (q_BTNH * (scale or size**-0.5)).reshape(batch, seq, num_keys, heads // num_keys, size)
    scores = [_scores(q, k) for k in (layer_cache.k_BSKH, k_BTKH)]
    scores_BKGTX = jnp.concatenate(scores, axis=-1)
    if softcap:
        scores_BKGTX = softcap * jnp.tanh(scores_BKGTX / softcap)
    if layer_cache.bias_BNTX is not None:
        scores_BKGTX += layer_cache.bias_BNTX.reshape(scores_BKGTX.shape)
    scores_BKGTX = jnp.where(visible_BTX[:, None, None], scores_BKGTX, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores_BKGTX, axis=-1).astype(v_BTKH.dtype)
    out = sum(
        _weighted(part, v) for part, v in ((weights[..., :slots], layer_cache.v_BSKH), (weights[..., slots:], v_BTKH))
    )
    return out.astype(q_BTNH.dtype).reshape(q_BTNH.shape)  # type: ignore[union-attr]


def _scores(q_BTKGH: jax.Array, k_BXKH: jax.Array) -> jax.Array:
    """float32 [B, K, G, T, X]."""
    if q_BTKGH.shape[1] == 1 and walks_along_keys():
        q, k = q_BTKGH.astype(jnp.float32), k_BXKH.astype(jnp.float32)
        return jnp.sum(q * k[:, :, :, None], axis=-1).transpose(0, 2, 3, 1)[:, :, :, None]
    return jnp.einsum("BTKGH,BXKH->BKGTX", q_BTKGH, k_BXKH, preferred_element_type=jnp.float32)


def _weighted(weights_BKGTX: jax.Array, v_BXKH: jax.Array) -> jax.Array:
    """The sums of the values by these weights, float32 [B, T, K, G, H]."""
    if weights_BKGTX.shape[3] == 1 and walks_along_keys():
        weights_BXKG, v = weights_BKGTX[:, :, :, 0].transpose(0, 3, 1, 2), v_BXKH.astype(jnp.float32)
        return jnp.sum(weights_BXKG[..., None].astype(jnp.float32) * v[:, :, :, None], axis=1, keepdims=True)
    return jnp.einsum("BKGTX,BXKH->BTKGH", weights_BKGTX, v_BXKH, preferred_element_type=jnp.float32)
