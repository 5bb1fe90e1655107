"""The decoding loop: one compiled prefill, one compiled step, tokens read a step late.

B rows, T tokens of the longest prompt, V vocabulary. A row that has ended stays in the batch and is not changed.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from lmkit.compiler.programs import FewRows, jit
from lmkit.config.arithmetic.mesh import batch_shards
from lmkit.config.sections.model import LinearDType, Position
from lmkit.decode.check import check_decoder, check_prompts
from lmkit.decode.sampling import Sampling, check_sampling, choose
from lmkit.decode.stamps import Said, Stamps, after, nothing_said, with_stamps
from lmkit.nn.cache import Cache
from lmkit.nn.forms import decoding_params
from lmkit.nn.param import param_specs
from lmkit.parallel.devices import platform_of
from lmkit.parallel.rules import WHOLE, current_spec, on_each_device, put_rows, reshard, sharding_of

NOTHING = -1  # what a row that has ended says
_MULTIPLE = 16  # prompts are padded to one, so that few lengths are compiled


class Prompts(NamedTuple):
    """What each row begins with.

    Attributes:
        tokens: int ids of each row, one or more; of the target, for an encoder-decoder.
        source: int [B, S] or float [B, S, mels] for an encoder-decoder.
        source_ids: int [B, S], 1 for a token and 0 for padding.
        first_row: what the first row is called; randomness is folded with it, so batches of one job must differ.
        names: what each row is called, where they do not follow each other.
    """

    tokens: Sequence[Sequence[int]]
    source: np.ndarray | None = None
    source_ids: np.ndarray | None = None
    first_row: int = 0
    names: Sequence[int] | None = None


class DecodeState(NamedTuple):
    """Where every row is: what a step takes and gives."""

    cache: Cache
    token_B: jax.Array  # int32, chosen and not yet in the cache
    done_B: jax.Array  # bool
    row_B: jax.Array  # int32, what its randomness is folded with
    seen_BV: jax.Array | None  # bool, with a repetition penalty
    said: Said | None  # with time stamps


def position_limit(config: Any) -> int:
    """How many tokens a row may have; 0 where there is no limit."""
    return config.max_seq_len if config.position is Position.learned else 0


def begin(model: Any, batch: Mapping[str, jax.Array], length: int) -> tuple[jax.Array, Cache]:
    """The prompts through the model: float32 logits [B, V] after each one's last token, and a cache of `length`."""
    tokens_BT, num_B = batch["tokens_BT"], batch["num_B"]
    cache = model.init_cache(tokens_BT.shape[0], length)
    if "source" in batch:
        first: dict[str, Any] = {"memory": model.encode(batch["source"], batch.get("source_ids_BS"))}
    else:
        first = {"empty": True}
    hidden_BTD, cache = model.extend(tokens_BT, num_B, cache, **first)
    last_BT = jnp.arange(tokens_BT.shape[1]) == num_B[:, None] - 1
    hidden_BTD = jnp.where(last_BT[:, :, None], reshard(hidden_BTD, WHOLE), 0)
    return logits_of(model, jnp.sum(hidden_BTD, axis=1, keepdims=True)), cache


def logits_of(model: Any, hidden_B1D: jax.Array) -> jax.Array:
    """float32 [B, V], whole on each device of its row."""
    return reshard(model.logits(hidden_B1D), ("batch", None, None))[:, 0]


def rows_only(function: Callable, out: Any, *arguments: Any) -> Any:
    """Runs a function that treats each row by itself on each device's own rows.

    Arguments are [B, ...], or without dims and the same everywhere; `out` is a tree like the results.
    """
    if (spec := current_spec(("batch",))) is None:
        return function(*arguments)

    def layout(x: Any) -> PartitionSpec:
        return spec if x.ndim else PartitionSpec()

    specs = jax.tree.map(layout, arguments)
    return on_each_device(function, specs, jax.tree.map(lambda _: spec, out))(*arguments)


def put_batch(prompts: Prompts, mesh: Mesh | None, limit: int) -> dict[str, jax.Array]:
    """Prompts padded on the right to one length, and to a number of rows that the mesh divides, on their devices."""
    real = len(prompts.tokens)
    total = real if mesh is None else -(-real // batch_shards(mesh.shape)) * batch_shards(mesh.shape)
    longest = max(len(ids) for ids in prompts.tokens)
    width = -(-longest // _MULTIPLE) * _MULTIPLE
    width = max(longest, min(width, limit)) if limit else width
    tokens_BT, num_B = np.zeros((total, width), np.int32), np.ones(total, np.int32)
    for row, ids in enumerate(prompts.tokens):
        tokens_BT[row, : len(ids)], num_B[row] = ids, len(ids)
    row_B, names = np.arange(total, dtype=np.int32), prompts.names
    names_B = prompts.first_row + row_B if names is None else np.resize(np.asarray(names, np.int32), total)
    batch = {"tokens_BT": tokens_BT, "num_B": num_B, "row_B": names_B, "done_B": row_B >= real}
    for name, value in (("source", prompts.source), ("source_ids_BS", prompts.source_ids)):
        if value is not None:
            batch[name] = np.concatenate([value, np.repeat(value[-1:], total - real, axis=0)])
    if mesh is None:
        return {name: jnp.asarray(value) for name, value in batch.items()}
    return {name: _put(value, mesh) for name, value in batch.items()}


def _put(value: np.ndarray, mesh: Mesh) -> jax.Array:
    sharding = sharding_of(("batch", *[None] * (value.ndim - 1)), mesh)
    return put_rows(value, sharding)


class Decoder:
    """Continues prompts with one model, a token a step for all rows.

    Args:
        merge: parameters to the model (anything with init_cache, extend, logits; encode where there is a source).
        config: the model's.
        sampling: how a token is chosen.
        end_ids: tokens that end a row.
        suppress: tokens that are never chosen.
        suppress_first: tokens that are not chosen as the first after a prompt.
        vocab_size: ids from here on are never chosen; 0 for the model's own.
        stamps: with it, texts have time stamps.
        mesh: where the parameters are; None without one.

    Raises ConfigError for a model that writes no text; its methods do for prompts that it cannot go on from.
    """

    def __init__(
        self,
        merge: Callable[[Any], Any],
        config: Any,
        sampling: Sampling,
        *,
        end_ids: Sequence[int] = (),
        suppress: Sequence[int] = (),
        suppress_first: Sequence[int] = (),
        vocab_size: int = 0,
        stamps: Stamps | None = None,
        mesh: Mesh | None = None,
    ):
        check_decoder(config, vocab_size, end_ids=end_ids, suppress=suppress, suppress_first=suppress_first)
        check_sampling(sampling)
        self.merge, self.mesh, self.limit, self.config = merge, mesh, position_limit(config), config
        self.sampling, self.end_ids, self.stamps = sampling, tuple(end_ids), stamps
        self.vocab_size = min(vocab_size or config.vocab_size, config.vocab_size)
        self._never, self._never_first = (
            np.isin(np.arange(self.vocab_size), ids) if ids else None for ids in (list(suppress), list(suppress_first))
        )
        here, few = platform_of(mesh), FewRows.fast
        self._prefill = jit(self._prefill_rows, here, few_rows=few, static_argnames="length")
        self._step = jit(self._step_rows, here, few_rows=few, donate_argnums=1)

    def allowed(self, scores_RV: jax.Array, first: jax.Array | bool, said: Said | None = None) -> jax.Array:
        """The scores with -inf where a token may not be chosen; `first`: after a prompt; `said`: with time stamps."""
        if self._never is not None:
            scores_RV = jnp.where(self._never, -jnp.inf, scores_RV)
        if self._never_first is not None:
            scores_RV = jnp.where(self._never_first & first, -jnp.inf, scores_RV)
        return scores_RV if self.stamps is None or said is None else with_stamps(scores_RV, said, self.stamps)

    def prepared(self, params: Any) -> Any:
        """The parameters as its programs read them fastest, worth it where many tokens follow.

        On one CPU device this is a copy, for `merge` only; the caller drops the first. Elsewhere they are as they were.
        """
        config = self.config
        if getattr(config, "linear_dtype", LinearDType.same) is not LinearDType.same:
            return params
        with self.on_mesh():
            return decoding_params(params, param_specs(nnx.split(nnx.eval_shape(self.merge, params))[1]))

    def stream(self, params: Any, prompts: Prompts, *, max_new_tokens: int, seed: int = 0) -> Iterator[np.ndarray]:
        """The next token of every row [B], again and again; NOTHING for rows that have ended before.

        Ends when all rows have, or after `max_new_tokens`. A token is handed out while the device makes the next.
        """
        batch, rows = self.put(prompts, max_new_tokens), len(prompts.tokens)
        key = jax.random.key(seed)
        length = batch["tokens_BT"].shape[1] + max_new_tokens
        with self.on_mesh():
            said, state = self._prefill(params, batch, key, length=length)
        for _ in range(max_new_tokens - 1):
            with self.on_mesh():
                next_said, state = self._step(params, state, key)
            yield (now := read(said)[:rows])
            if (now == NOTHING).all() or np.isin(now, [NOTHING, *self.end_ids]).all():
                return
            said = next_said
        yield read(said)[:rows]

    def generate(self, params: Any, prompts: Prompts, *, max_new_tokens: int, seed: int = 0) -> list[list[int]]:
        """The new tokens of every row, without the one that ended it."""
        steps = np.stack(list(self.stream(params, prompts, max_new_tokens=max_new_tokens, seed=seed)), axis=1)
        return [self.without_end(row) for row in steps]

    def without_end(self, tokens: np.ndarray) -> list[int]:
        """A row's tokens up to the one that ended it."""
        return [int(token) for token in tokens if token not in (NOTHING, *self.end_ids)]

    def put(self, prompts: Prompts, max_new_tokens: int) -> dict[str, jax.Array]:
        """The prompts on their devices. Raises ConfigError for those that it cannot go on from."""
        check_prompts(self.config, self.limit, max_new_tokens, prompts.tokens, prompts.source, prompts.source_ids)
        return put_batch(prompts, self.mesh, self.limit)

    def on_mesh(self) -> Any:
        """The context its programs are called in."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _prefill_rows(self, params: Any, batch: dict[str, jax.Array], key: jax.Array, *, length: int) -> Any:
        logits_BV, cache = begin(self.merge(params), batch, length)
        seen_BV = None
        if self.sampling.repetition_penalty != 1:
            seen_BV = rows_only(
                partial(seen_in, size=self.vocab_size), True, batch["tokens_BT"], batch["num_B"]
            )  # fmt: skip
        said = nothing_said(batch["num_B"]) if self.stamps else None
        state = DecodeState(cache, batch["num_B"], batch["done_B"], batch["row_B"], seen_BV, said)
        return self._chosen(logits_BV, cache, state, key, first=True)

    def _step_rows(self, params: Any, state: DecodeState, key: jax.Array) -> Any:
        model = self.merge(params)
        going_B = (~state.done_B).astype(jnp.int32)
        hidden_B1D, cache = model.extend(state.token_B[:, None], going_B, state.cache)
        return self._chosen(logits_of(model, hidden_B1D), cache, state, key)

    def _chosen(
        self, logits_BV: jax.Array, cache: Cache, state: DecodeState, key: jax.Array, first: bool = False
    ) -> tuple[jax.Array, DecodeState]:
        """What each row says now, on every device, and the rows after that."""

        def pick(logits_BV, seen_BV, said, row_B, index_B, done_B, key):
            scores_BV = self.allowed(logits_BV[:, : self.vocab_size].astype(jnp.float32), first, said)
            token_B = choose(scores_BV, seen_BV, self.sampling, key, row_B, index_B)
            if seen_BV is not None:
                seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
            if self.stamps is not None:
                said = after(said, token_B, self.stamps)
            said_B = jnp.where(done_B, NOTHING, token_B)
            return said_B, token_B, done_B | jnp.isin(token_B, jnp.array(self.end_ids, jnp.int32)), seen_BV, said

        out = (True, True, True, *(None if one is None else True for one in (state.seen_BV, state.said)))
        said_B, token_B, done_B, seen_BV, said = rows_only(
            pick, out, logits_BV, state.seen_BV, state.said, state.row_B, cache.length_B, state.done_B, key
        )  # fmt: skip
        return reshard(said_B, (None,)), DecodeState(cache, token_B, done_B, state.row_B, seen_BV, said)


def seen_in(tokens_BT: jax.Array, num_B: jax.Array, size: int) -> jax.Array:
    """bool [B, V]: whether a token is among the first `num_B` of its row."""
    real_BT = jnp.arange(tokens_BT.shape[1]) < num_B[:, None]
    ids_BT = jnp.where(real_BT, tokens_BT, size)
    return (
        jnp.zeros((len(tokens_BT), size), bool).at[jnp.arange(len(tokens_BT))[:, None], ids_BT].set(True, mode="drop")
    )


def read(replicated: jax.Array) -> np.ndarray:
    """The value of an array that every device has whole."""
    return np.asarray(replicated.addressable_data(0))
