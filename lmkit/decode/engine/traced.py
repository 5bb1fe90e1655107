"""What the engine's device programs compute: pure functions of parameters, caches and small arrays.

L layers, S tokens that a slot holds, K key heads of size H, V tokens of the vocabulary. A mesh splits the batch into
parts, and every array of rows with it: D rows of one text, the same in each part; G rows of a group of slots; R rows
of a step, which are the first of each part's. T tokens of a piece of a prompt.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lmkit.decode.loop import logits_of, rows_only
from lmkit.decode.request import MAX_TOP_LOGPROBS
from lmkit.decode.sampling import RowSampling, choose_rows
from lmkit.nn.cache import SLOT_DIMS, Cache
from lmkit.parallel.rules import WHOLE, Dims, current_spec, on_each_device, reshard

EACH: Dims = ("batch",)
TABLE: Dims = ("batch", None)
GROUP_DIMS = (SLOT_DIMS, SLOT_DIMS, EACH)
RULE_DIMS = (TABLE,) * 3
IDLE = -1  # the length of a row that takes no part


class Text(NamedTuple):
    """The cache of one text, outside of the slots."""

    k_LDSKH: Any
    v_LDSKH: Any


class Group(NamedTuple):
    """Slots whose rows take their steps together."""

    k_LGSKH: Any
    v_LGSKH: Any
    token_G: Any  # int32, chosen and not yet in the cache


class Rules(NamedTuple):
    """What penalties and biases need to know of each row."""

    seen_GV: Any  # bool: in the prompt or the text
    count_GV: Any  # int32: how often it has been written
    bias_GV: Any  # float32


class Numbers(NamedTuple):
    """Each row's own numbers, packed: two arrays from the host a step."""

    floats_RF: Any  # float32: temperature, top_p, min_p, repetition, presence, frequency
    ints_RI: Any  # uint32: top_k, index, two words of the seed, whether the row has rules


FLOATS, INTS = 6, 5


def piece(merge: Callable[[Any], Any], params: Any, text: Text, tokens_T: Any, start: Any, count: Any) -> Any:
    """The next tokens of a prompt, the first `count` of them real: the text, and the last one's stream [D, 1, D]."""
    model, (parts, slots) = merge(params), text.k_LDSKH.shape[1:3]
    ahead_T = jnp.arange(len(tokens_T))
    tokens_DT, place_DT = (_alike(x, parts) for x in (tokens_T, start + jnp.minimum(ahead_T, count - 1)))
    start_D, count_D = (_alike(x, parts) for x in (start, count))
    hidden_DTE, cache = model.extend(tokens_DT, count_D, _cache(text, start_D, slots), positions_BT=place_DT)
    last_T1 = (ahead_T == count - 1)[:, None]
    last_D1E = jnp.sum(jnp.where(last_T1, reshard(hidden_DTE, WHOLE), 0), axis=1, keepdims=True)
    return Text(cache.k_LBSKH, cache.v_LBSKH), last_D1E


def head(merge: Callable[[Any], Any], params: Any, hidden_R1E: Any) -> tuple[Any, Any]:
    """float32 logits [R, V] and the logarithm of their sum [R], whole on the devices of their rows."""
    logits_RV = logits_of(merge(params), hidden_R1E)
    return logits_RV, rows_only(lambda x: jax.nn.logsumexp(x, axis=1), True, logits_RV)


def step(merge: Callable[[Any], Any], params: Any, group: Group, length_R: Any) -> tuple[Group, Any, Any]:
    """One token into the cache of each row that takes part; `head` of what comes out."""
    slots, going_R = group.k_LGSKH.shape[2], (length_R != IDLE).astype(jnp.int32)
    cache = _cache(group, jnp.maximum(length_R, 0), slots)
    token_R = rows_only(lambda token, like: token[: len(like)], True, group.token_G, length_R)
    hidden_R1E, cache = merge(params).extend(token_R[:, None], going_R, cache)
    return Group(cache.k_LBSKH, cache.v_LBSKH, group.token_G), *head(merge, params, hidden_R1E)


def likeliest(never_V: Any, logits_RV: Any, sum_R: Any, token_G: Any, length_R: Any) -> tuple[Any, Any, Any]:
    """Greedy tokens [R] and their log-probabilities, on every device, and the group's tokens with them."""

    def pick(logits_RV, sum_R, token_G, length_R):
        token_R = jnp.argmax(_allowed(logits_RV, never_V), axis=1).astype(jnp.int32)
        return token_R, _logprob(logits_RV, sum_R, token_R), _kept(token_G, token_R, length_R)

    token_R, logprob_R, token_G = rows_only(pick, (True,) * 3, logits_RV, sum_R, token_G, length_R)
    return reshard(token_R, (None,)), reshard(logprob_R, (None,)), token_G


def choose(
    never_V: Any, logits_RV: Any, sum_R: Any, token_G: Any, length_R: Any, rules: Rules, numbers: Numbers, mask_RV: Any
) -> tuple[Any, Any, Any, Rules]:
    """The same for rows with any request's numbers; `mask`: which tokens a grammar lets come."""

    def pick(logits_RV, sum_R, token_G, length_R, rules, numbers, mask_RV):
        scores_RV = jnp.where(mask_RV, _allowed(logits_RV, never_V), -jnp.inf)
        rows, (top_k_R, index_R, _, _, ruled_R) = len(scores_RV), numbers.ints_RI.T
        integers = top_k_R.astype(jnp.int32), index_R, numbers.ints_RI[:, 2:4]
        how = RowSampling(*numbers.floats_RF.T, *integers)  # type: ignore[call-arg]
        own = (jnp.where(ruled_R[:, None] > 0, table[:rows], 0) for table in rules)
        seen_RV, count_RV, bias_RV = own
        token_R = choose_rows(scores_RV, seen_RV > 0, count_RV, bias_RV, how)
        here_R = jnp.where(length_R == IDLE, rules.seen_GV.shape[1], token_R)  # outside: dropped
        at = jnp.arange(rows), here_R
        rules = rules._replace(
            seen_GV=rules.seen_GV.at[at].set(True, mode="drop"), count_GV=rules.count_GV.at[at].add(1, mode="drop")
        )
        return token_R, _logprob(logits_RV, sum_R, token_R), _kept(token_G, token_R, length_R), rules

    out = (True, True, True, Rules(True, True, True))
    token_R, logprob_R, token_G, rules = rows_only(
        pick, out, logits_RV, sum_R, token_G, length_R, rules, numbers, mask_RV
    )  # fmt: skip
    return reshard(token_R, (None,)), reshard(logprob_R, (None,)), token_G, rules


def top(vocab: int, logits_RV: Any, sum_R: Any) -> tuple[Any, Any]:
    """The likeliest tokens [R, n] of each row, the likeliest first, and their log-probabilities, on every device."""

    def pick(logits_RV, sum_R):
        best_Rn, id_Rn = lax.top_k(logits_RV[:, :vocab], min(MAX_TOP_LOGPROBS, vocab))
        return id_Rn, best_Rn - sum_R[:, None]

    return tuple(reshard(x, (None, None)) for x in rows_only(pick, (True, True), logits_RV, sum_R))  # type: ignore


def write_row(dims: Sequence[Dims], into: Any, rows: Any, place_2: Any) -> Any:
    """Arrays of a group with one row replaced by one that all parts have; place: the row in its part, and the part."""
    axes = _batch_axes()

    def write(into, rows, place_2):
        mine = (lax.axis_index(axes) if axes else 0) == place_2[1]

        def one(x, row, axis):
            old = lax.dynamic_slice_in_dim(x, place_2[0], 1, axis)
            return lax.dynamic_update_slice_in_dim(x, jnp.where(mine, row, old), place_2[0], axis)

        return tuple(one(x, row, d.index("batch")) for x, row, d in zip(into, rows, dims, strict=True))

    out = _each(write, (dims, dims, None), dims)(tuple(into), tuple(rows), place_2)
    return type(into)(*out)


def read_row(dims: Sequence[Dims], group: Any, place_2: Any) -> Any:
    """The reverse: a row of the arrays of a group, to all parts."""
    axes = _batch_axes()

    def read(group, place_2):
        def one(x, axis):
            row = lax.dynamic_slice_in_dim(x, place_2[0], 1, axis)
            if axes:
                row = lax.all_gather(row, axes, axis=axis, tiled=True)
                row = lax.dynamic_slice_in_dim(row, place_2[1], 1, axis)
            return row

        return tuple(one(x, d.index("batch")) for x, d in zip(group, dims, strict=True))

    return _each(read, (dims, None), dims)(tuple(group), place_2)


def cut(span: int, text: Text, start: Any) -> Text:
    """So many tokens of a text's cache."""
    return Text(*(lax.dynamic_slice_in_dim(x, start, span, 2) for x in text))


def paste(text: Text, block: Text, start: Any) -> Text:
    """The reverse: they are written into a text's cache."""
    return Text(*(lax.dynamic_update_slice_in_dim(x, one, start, 2) for x, one in zip(text, block, strict=True)))


def empty(shape: tuple[int, ...], dtype: Any) -> Text:
    """Slots that hold nothing."""
    return Text(*(reshard(jnp.zeros(shape, dtype), SLOT_DIMS) for _ in range(2)))


def _cache(slots: Text | Group, length_R: Any, size: int) -> Cache:
    """Of rows that hold so many tokens, each one text from position 0 on."""
    ids_RS = reshard(jnp.ones((len(length_R), size), jnp.int32), TABLE)
    return Cache(slots[0], slots[1], ids_RS, length_R, length_R)


def _alike(x: Any, parts: int) -> Any:
    """[...] to [D, ...]: the same in each part."""
    return reshard(jnp.broadcast_to(x, (parts, *x.shape)), (*EACH, *[None] * x.ndim))


def _allowed(logits_RV: Any, never_V: Any) -> Any:
    return jnp.where(never_V, -jnp.inf, logits_RV[:, : len(never_V)])


def _logprob(logits_RV: Any, sum_R: Any, token_R: Any) -> Any:
    return jnp.take_along_axis(logits_RV, token_R[:, None], axis=1)[:, 0] - sum_R


def _kept(token_G: Any, token_R: Any, length_R: Any) -> Any:
    """The group's tokens with those of rows that took part."""
    return token_G.at[: len(token_R)].set(jnp.where(length_R == IDLE, token_G[: len(token_R)], token_R))


def _each(f: Callable, ins: Any, out: Any) -> Callable:
    """`f` on each device's own part of arrays with these dims."""
    return f if current_spec(EACH) is None else on_each_device(f, _specs(ins), _specs(out))


def _specs(dims: Any) -> Any:
    if dims is None or all(dim is None or isinstance(dim, str) for dim in dims):
        return current_spec(dims or (None,))
    return tuple(_specs(one) for one in dims)


def _batch_axes() -> tuple[str, ...]:
    """What splits the batch here, asked outside of `_each`: inside it nothing does."""
    spec = current_spec(EACH)
    entry = None if spec is None else spec[0]
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
