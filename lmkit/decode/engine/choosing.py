"""How a step's tokens are chosen: which program, with which numbers, and how they come back to the host."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lmkit.decode.engine.programs import Programs
from lmkit.decode.engine.runs import Run
from lmkit.decode.engine.traced import FLOATS, INTS, TABLE, Numbers, Rules
from lmkit.decode.loop import read
from lmkit.decode.request import TokenEvent

_NEUTRAL = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0)  # floats of a row that is greedy


class Chosen(NamedTuple):
    """Tokens that were dispatched in a tick, and not read yet; `rows`: of the arrays, the runs' own."""

    tick: int
    rows: list[tuple[int, Run]]
    token_R: jax.Array
    logprob_R: jax.Array
    top: tuple[jax.Array, jax.Array] | None

    def events(self) -> list[tuple[Run, TokenEvent]]:
        """Waits for the device."""
        token_R, logprob_R = read(self.token_R), read(self.logprob_R)
        ids_Rn, best_Rn = (read(one) for one in self.top) if self.top else (None, None)
        events = []
        for row, run in self.rows:
            top: tuple[tuple[int, float], ...] = ()
            if (count := run.request.top_logprobs) and ids_Rn is not None and best_Rn is not None:
                top = tuple(zip(ids_Rn[row, :count].tolist(), best_Rn[row, :count].tolist(), strict=True))
            events.append((run, TokenEvent(int(token_R[row]), float(logprob_R[row]), top, run.version)))
        return events


class Chooser:
    """Dispatches the choice of tokens from logits.

    Args:
        vocab: ids from here on are never chosen.
    """

    def __init__(self, programs: Programs, vocab: int):
        self._programs, self._vocab = programs, vocab
        self._all: dict[int, jax.Array] = {}  # a mask that lets every token come, of so many rows

    def choose(
        self, tick: int, rows: Sequence[tuple[int, Run]], count: int, scores: tuple[Any, Any], kept: Any, lengths: Any,
        rules: Rules | None,
    ) -> tuple[Chosen, Any, Rules | None]:  # fmt: skip
        """The next token of each run: the choice, and the group's tokens and rules with them.

        Args:
            rows: of `count` on each device; a run may have several, which are alike.
            kept, lengths, rules: of the group, see `traced.choose`.
        """
        programs, top = self._programs, None
        if all(run.plain for _, run in rows):
            token_R, logprob_R, kept = programs("likeliest", count)(*scores, kept, lengths)
        else:
            assert rules is not None
            numbers, mask = self._numbers(rows, count), self._mask(rows, count)
            token_R, logprob_R, kept, rules = programs("choose", count)(*scores, kept, lengths, rules, numbers, mask)
        if any(run.request.top_logprobs for _, run in rows):
            top = programs("top", count)(*scores)
        first = {run: row for row, run in reversed(rows)}
        for run in first:
            run.chosen += 1
        return Chosen(tick, [(row, run) for run, row in first.items()], token_R, logprob_R, top), kept, rules

    def _numbers(self, rows: Sequence[tuple[int, Run]], count: int) -> Numbers:
        total = count * self._programs.parts
        floats_RF, ints_RI = np.tile(np.array(_NEUTRAL, np.float32), (total, 1)), np.zeros((total, INTS), np.uint32)
        assert floats_RF.shape[1] == FLOATS
        for row, run in rows:
            floats_RF[row], ints_RI[row] = run.floats(), run.ints()
        return Numbers(self._programs.put(floats_RF, TABLE), self._programs.put(ints_RI, TABLE))

    def _mask(self, rows: Sequence[tuple[int, Run]], count: int) -> jax.Array:
        if all(run.mask_V is None for _, run in rows):
            if count not in self._all:
                self._all[count] = self._put_mask(count, [])
            return self._all[count]
        return self._put_mask(count, rows)

    def _put_mask(self, count: int, rows: Sequence[tuple[int, Run]]) -> jax.Array:
        mask_RV = np.ones((count * self._programs.parts, self._vocab), bool)
        for row, run in rows:
            if run.mask_V is not None:
                mask_RV[row] = run.mask_V
        return self._programs.put(mask_RV, TABLE)
