"""The engine's loop, one tick at a time: admission, a piece of a prompt, a step of every group, events a step late.

Letters as in `traced`. Nothing here waits for the device but `_read`, one tick after what it reads was dispatched;
and what a grammar allows next, which is known only once its last token is.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from lmkit.decode.engine.choosing import Chooser, Chosen
from lmkit.decode.engine.prefix import Prefixes, chain
from lmkit.decode.engine.programs import Programs
from lmkit.decode.engine.runs import Piece, Run, Waiting, pieces_of
from lmkit.decode.engine.slots import Slots
from lmkit.decode.engine.steady import steady_rows
from lmkit.decode.engine.traced import EACH, IDLE
from lmkit.decode.request import EndEvent, TokenEvent

_STAGED = 4  # prompts that are computed piece by piece at a time, each with a cache beside the slots
_LEAST_TOKENS = 16  # that a run has written in its slot before it gives it up


class Standing(NamedTuple):
    """What other threads may know, as of the last tick."""

    waiting: int = 0  # for the first time
    active: int = 0
    idle: bool = True


class Core:
    """All runs and all device memory; used by one thread.

    Args:
        programs: compiled.
        slots: texts that are decoded at a time.
        prefix_bytes: for beginnings of prompts.
        end_ids: tokens that end a text.
    """

    def __init__(self, programs: Programs, params: Any, slots: int, prefix_bytes: int, end_ids: Sequence[int]):
        self.programs, self.sizes, self.end_ids = programs, programs.sizes, frozenset(end_ids)
        self.version, self.params = 0, {0: params}
        self.prefixes = Prefixes(prefix_bytes)
        self.slots = Slots(programs, slots)
        self.rows, self.slots.groups[0] = steady_rows(programs, params, self.slots.groups[0])
        self._chooser = Chooser(programs, self.sizes.vocab)
        self.waiting, self.staged = Waiting(), list[Run]()
        self._pending: deque[Chosen] = deque()
        self.alive: dict[Run, None] = {}  # has no end yet
        self.counts: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self._ticks = 0

    @property
    def active(self) -> int:
        """Runs that have a slot, or will have one as soon as their prompt is computed."""
        return len(self.slots.running) + len(self.staged)

    @property
    def standing(self) -> Standing:
        waiting = sum(run.version < 0 for run in self.waiting)
        return Standing(waiting, self.active, not (self.alive or self._pending))

    def take_in(self, run: Run) -> None:
        """A new request, to the end of the queue."""
        self.alive[run] = None
        self.waiting.push(run)

    def swap(self, params: Any) -> None:
        """What is admitted from now on takes these."""
        self.version += 1
        self.params[self.version] = params
        self.prefixes.clear()

    def tick(self) -> None:
        """Everything that can be dispatched now; then what the tick before has made is read and handed out."""
        for run in list(self.alive):
            if run.cancelled:
                self.end(run, "cancelled")
        self._ticks += 1
        self._admit()
        if self.staged:
            self._piece()
        for group in range(len(self.slots.groups)):
            for version in sorted({run.version for _, run in self.slots.of(group)}):
                self._step(group, version)
        self._read(before=self._ticks)
        used = {self.version, *(run.version for run in self.alive)}
        self.params = {version: params for version, params in self.params.items() if version in used}

    def end(self, run: Run, reason: str, message: str = "") -> None:
        """The run's last event; what it held is free."""
        if run.ended:
            return
        run.ended = True
        self.alive.pop(run, None)
        if run.slot >= 0:
            self.slots.release(run)
        elif run in self.staged:
            self.staged.remove(run)
        elif run in self.waiting:
            self.waiting.remove(run)
        run.text = run.token = run.rules = None
        self.ended[reason] += 1
        self._tell(run, EndEvent(reason, message, run.cached))

    def abandon(self, more: Sequence[Run], reason: str, message: str) -> None:
        """The last event of every run, and of these, whatever state the rest is in."""
        for run in (*self.alive, *more):
            run.ended = True
            self.ended[reason] += 1
            self._tell(run, EndEvent(reason, message, run.cached))
        self.alive.clear()

    def _tell(self, run: Run, event: TokenEvent | EndEvent) -> None:
        try:
            run.emit(event)
        except Exception:  # whoever listens has gone away
            run.cancelled = True

    # ---- Admission --------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while len(self.waiting):
            owner = self.waiting.owners[0]
            if self.active == self.slots.count:
                if (found := self._gives_way()) is None:
                    return
                victim, owner = found
                self._preempt(victim)
            if self.waiting.first(owner).version < 0 and len(self.staged) == _STAGED:
                return
            run = self.waiting.pop(owner)
            if run.version < 0:
                self.counts["admitted"] += 1
                self._stage(run)
            else:
                self.slots.give(run)

    def _gives_way(self) -> tuple[Run, str] | None:
        """A run that gives up its slot, and the owner who has none and gets it."""
        held = Counter(run.request.owner for run in (*self.slots.running.values(), *self.staged))
        without = [owner for owner in self.waiting.owners if not held[owner]]
        if not without or len(self.staged) == _STAGED:
            return None
        most = held.most_common(1)[0][0]
        may = [run for run in self.slots.running.values()
               if run.request.owner == most and run.chosen - run.since >= _LEAST_TOKENS]  # fmt: skip
        return (min(may, key=lambda run: run.chosen), without[0]) if may else None

    def _preempt(self, run: Run) -> None:
        self.slots.take(run)
        self.waiting.push(run, front=True)
        self.counts["preemptions"] += 1

    def _stage(self, run: Run) -> None:
        """Begins with a prompt: the part of it that is kept, and what is still to compute."""
        tokens, size = run.request.tokens, self.sizes.pieces[-1]
        run.version, run.keys = self.version, chain(tokens, size)
        blocks = self.prefixes.find(run.keys[: (len(tokens) - 1) // size])  # the last token's logits are needed
        run.text = self.programs("text")()
        for number, block in enumerate(blocks):
            if not self.programs.ring or number == len(blocks) - 1:
                at = 0 if self.programs.ring else number * size
                run.text = self.programs("paste")(run.text, block, self.programs.number(at))
        run.length = run.cached = len(blocks) * size
        run.pieces = deque(pieces_of(len(tokens), self.sizes.pieces)[len(blocks) :])
        self.counts["cached_tokens"] += run.cached
        self.staged.append(run)

    def _piece(self) -> None:
        """One piece: in turns of the prompt that came first, and of the one with the least to do."""
        run = self.staged[0] if self._ticks % 2 else min(self.staged, key=lambda run: len(run.pieces))
        piece, programs = run.pieces.popleft(), self.programs
        tokens_T = np.zeros(piece.size, np.int32)
        tokens_T[: piece.count] = run.request.tokens[piece.start : piece.start + piece.count]
        numbers = programs.number(piece.start), programs.number(piece.count)
        params, tokens = self.params[run.version], programs.put(tokens_T, (None,))
        run.text, hidden = programs("piece", piece.size)(params, run.text, tokens, *numbers)
        run.length += piece.count
        self.counts["chunks"] += 1
        if piece.count == self.sizes.pieces[-1] and run.version == self.version:
            self._keep(run, piece)
        if not run.pieces:
            self._first(run, hidden)

    def _keep(self, run: Run, piece: Piece) -> None:
        start = 0 if self.programs.ring else piece.start
        key = run.keys[piece.start // self.sizes.pieces[-1]]
        self.prefixes.keep(key, lambda: self.programs("cut")(run.text, self.programs.number(start)))

    def _first(self, run: Run, hidden: Any) -> None:
        """The first token of a text, and its slot."""
        programs, vocab = self.programs, self.sizes.vocab
        scores = programs("head")(self.params[run.version], hidden)
        lengths, kept = (programs.put(np.full(programs.parts, value, np.int32), EACH) for value in (run.length, 0))
        rules = None if run.plain else programs.rules(1, *(run.tables(vocab) if run.ruled else ()))
        run.token, rules = self._choose(
            [(part, run) for part in range(programs.parts)], 1, scores, kept, lengths, rules
        )
        if run.ended:  # by its grammar
            return
        self.staged.remove(run)
        run.rules = rules if run.ruled else None
        if run.chosen < run.request.max_new_tokens:
            self.slots.give(run)

    # ---- Steps ------------------------------------------------------------------------------------------------------

    def _step(self, group: int, version: int) -> None:
        """One token more for those runs of a group that go on with these parameters."""
        placed, programs = (
            [(place, run) for place, run in self.slots.of(group) if run.version == version],
            self.programs,
        )
        highest = max(place.row for place, _ in placed)
        count = next(rows for rows in self.rows if rows > highest)
        lengths_R = np.full(count * programs.parts, IDLE, np.int32)
        rows = [(place.part * count + place.row, run) for place, run in placed]
        for row, run in rows:
            lengths_R[row] = run.length
            run.length += 1
        lengths = programs.put(lengths_R, EACH)
        slots, *scores = programs("step", count)(self.params[version], self.slots.groups[group], lengths)
        if any(run.request.grammar is not None for _, run in rows):  # its last token decides what may come
            self._read(before=self._ticks + 1)
        token_G, self.slots.rules[group] = self._choose(
            rows, count, scores, slots.token_G, lengths, self.slots.rules[group]
        )
        self.slots.groups[group] = slots._replace(token_G=token_G)
        self.counts["steps"] += 1
        for _, run in rows:
            if run.slot >= 0 and run.chosen == run.request.max_new_tokens:
                self.slots.release(run)

    def _choose(self, rows: Any, count: int, scores: Any, kept: Any, lengths: Any, rules: Any) -> tuple[Any, Any]:
        for _, run in rows:
            self._ask(run)
        chosen, kept, rules = self._chooser.choose(self._ticks, rows, count, tuple(scores), kept, lengths, rules)
        self._pending.append(chosen)
        return kept, rules

    def _ask(self, run: Run) -> None:
        """What the run's grammar lets come next."""
        run.mask_V = None
        if run.request.grammar is None or run.ended:
            return
        with self._own_fault(run):
            mask_V = np.asarray(run.request.grammar.mask(), bool)[: self.sizes.vocab]
            mask_V = np.pad(mask_V, (0, self.sizes.vocab - len(mask_V)))
            if not (mask_V & self.programs.may(first=not run.chosen)).any():
                raise ValueError("its grammar lets no token come")
            run.mask_V = mask_V

    def _read(self, *, before: int) -> None:
        """Hands out what was dispatched in the ticks before this one."""
        while self._pending and self._pending[0].tick < before:
            for run, event in self._pending.popleft().events():
                if not run.ended:
                    self._said(run, event)

    def _said(self, run: Run, event: TokenEvent) -> None:
        request = run.request
        if run.cancelled:
            self.end(run, "cancelled")
        elif not np.isfinite(event.logprob):
            self.end(run, "error", f"the model's logits are not finite after {run.read} tokens")
        elif event.token in self.end_ids and not request.ignore_end:
            self.end(run, "end")
        else:
            run.read += 1
            self.counts["new_tokens"] += 1
            self._tell(run, event)
            with self._own_fault(run):
                if request.grammar is not None and not request.grammar.accept(event.token):
                    self.end(run, "end")
            if run.read == request.max_new_tokens:
                self.end(run, "length")

    @contextmanager
    def _own_fault(self, run: Run) -> Iterator[None]:
        """An error in a request's own grammar ends it alone."""
        try:
            yield
        except Exception as error:
            self.end(run, "error", f"{type(error).__name__}: {error}")
