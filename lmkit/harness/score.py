"""Log-likelihoods of many short texts, each the same bits whatever else is scored beside it.

An item is what a model reads and which of its last tokens are scored. Every item has a slot of a fixed length, the
least of a short list that it fits into; a tile is so many slots of one length, and one program is compiled for each
length. An item begins its slot, so attention, positions and sums see the same whether the tile is full or not, in
whatever place the slot lies: rows of a product do not depend on each other. (The tests compare bits.) How many items
are in hand at a time decides how full tiles are, never what is computed in them.

R slots of a tile, T tokens of a slot, q scored tokens of a slot.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmkit.compiler.programs import jit
from lmkit.config.arithmetic.mesh import batch_shards
from lmkit.core.evaluation import in_flight
from lmkit.data.loader import array_sharding
from lmkit.objectives.scores import token_scores
from lmkit.parallel.devices import platform_of
from lmkit.parallel.rules import WHOLE, current_spec, put_rows, reshard, sharding_of

_LEAST_SLOT = 16
_TILE_TOKENS = {"cpu": 2048, "gpu": 16384, "tpu": 16384}  # of a batch shard: enough for its products to run at speed
_SHARES = (4, 1)  # one in so many tokens of a slot may be scored: the head works on those alone
_AHEAD = 2  # tiles that are dispatched before the first is waited for


class Item(NamedTuple):
    """Tokens that are read, and the targets of the last so many of them."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


class Score(NamedTuple):
    """The log-likelihood of the targets in nats, and whether each is the likeliest token in its place."""

    log_likelihood: float
    greedy: bool


class _Row(NamedTuple):
    """A slot's content: items with the same inputs, whose targets are scored one after the other."""

    slot: int
    scored: int
    items: list[int]


def slot_length(length: int, most: int) -> int:
    """The slot of so many tokens: 16, 32, 48, 64, 96, 128, ..., each half again or a third more than the one before."""
    size = _LEAST_SLOT
    while size < length:
        size = size // 3 * 4 if size % 3 == 0 else size * 2 if size == _LEAST_SLOT else size // 2 * 3
    return min(size, most)


class PackedScorer:
    """Scores items with one model.

    Args:
        merge: parameters to a model with `hidden`, `head_VD` and `config.logit_softcap`.
        max_len: the longest input.
        mesh: where the parameters are.
        batch_size: items in hand at a time; 0 for as many as keep the devices busy.
    """

    def __init__(self, merge: Callable[[Any], Any], mesh: Mesh, *, max_len: int, batch_size: int = 0):
        self.merge, self.mesh, self.max_len, self.batch_size = merge, mesh, max_len, batch_size
        self.shards = batch_shards(mesh.shape)
        self.program = jit(self._score, platform_of(mesh))

    def rows_of(self, slot: int) -> int:
        """How many slots of a length a tile has; a multiple of 16 where a slot's length is none."""
        fit = _TILE_TOKENS.get(platform_of(self.mesh), 16384) // slot
        least = 1 if slot % 16 == 0 else 16
        return max(fit // least, 1) * least * self.shards

    def score(
        self, params: Any, items: Sequence[Item], tell: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Score]:
        """A score for each item, in their order. Every process must call it with the same items."""
        found: list[Score | None] = [None] * len(items)
        step = self.batch_size or len(items)
        order = sorted(range(len(items)), key=lambda n: (-len(items[n].inputs), items[n].inputs, items[n].targets))
        tiles = (rows for n in range(0, len(order), step) for rows in self._tiles(items, order[n : n + step]))
        scored = ((rows, self.program(params, *self._arrays(items, rows))) for rows in tiles)
        done = 0
        with jax.set_mesh(self.mesh):
            for rows, results in in_flight(scored, _AHEAD):
                nll, best = (np.asarray(x.addressable_data(0)) for x in results)
                for number, row in enumerate(rows):
                    first = 0
                    for item in row.items:
                        here = slice(first, first + len(items[item].targets))
                        # Summed one after the other in float64: of no matter where they lay.
                        total = -sum(map(float, nll[number, here]))
                        found[item], first = Score(total, bool(best[number, here].all())), here.stop
                    done += len(row.items)
                tell(done, len(items))
        assert all(one is not None for one in found)
        return found  # type: ignore[return-value]

    def _tiles(self, items: Sequence[Item], chosen: Sequence[int]) -> Iterator[list[_Row]]:
        """Rows of equal slots, a tile at most; what the slot is follows from the item alone."""
        shapes: dict[tuple[int, int], list[_Row]] = {}
        for number in chosen:
            item = items[number]
            slot = slot_length(len(item.inputs), self.max_len)
            share = next(share for share in _SHARES if len(item.targets) <= max(slot // share, 1))
            scored = max(slot // share, 1)
            rows = shapes.setdefault((slot, scored), [])
            last = rows[-1] if rows else None
            if last and items[last.items[0]].inputs == item.inputs and self._room(items, last) >= len(item.targets):
                last.items.append(number)
            else:
                rows.append(_Row(slot, scored, [number]))
        for (slot, _), rows in shapes.items():
            size = self.rows_of(slot)
            for first in range(0, len(rows), size):
                yield rows[first : first + size]

    @staticmethod
    def _room(items: Sequence[Item], row: _Row) -> int:
        return row.scored - sum(len(items[number].targets) for number in row.items)

    def _arrays(self, items: Sequence[Item], rows: list[_Row]) -> tuple[jax.Array, jax.Array, jax.Array]:
        slot, scored, _ = rows[0]
        size = self.rows_of(slot)
        tokens_RT, place_Rq, target_Rq = (np.zeros((size, n), np.int32) for n in (slot, scored, scored))
        for number, row in enumerate(rows):
            inputs = items[row.items[0]].inputs
            tokens_RT[number, : len(inputs)] = inputs
            first = 0
            for item in row.items:
                targets = items[item].targets
                here = slice(first, first + len(targets))
                place_Rq[number, here] = np.arange(len(inputs) - len(targets), len(inputs))
                target_Rq[number, here] = targets
                first = here.stop
        by_row = sharding_of(("batch", None), self.mesh)
        tokens = put_rows(tokens_RT, array_sharding("inputs", tokens_RT.shape, self.mesh))
        return tokens, put_rows(place_Rq, by_row), put_rows(target_Rq, by_row)

    def _score(self, params: Any, tokens_RT: jax.Array, place_Rq: jax.Array, target_Rq: jax.Array) -> Any:
        model = self.merge(params)
        hidden_RTD = reshard(model.hidden(tokens_RT), WHOLE)
        spec = current_spec(WHOLE)
        rows_R1 = reshard(jnp.arange(tokens_RT.shape[0]), ("batch",))[:, None]
        hidden_RqD = hidden_RTD.at[rows_R1, place_Rq].get(out_sharding=spec)
        nll_Rq, best_Rq = token_scores(
            hidden_RqD, model.head_VD(), target_Rq, softcap=model.config.logit_softcap
        )  # fmt: skip
        return tuple(reshard(x, (None, None)) for x in (nll_Rq, best_Rq))
