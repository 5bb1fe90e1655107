"""The slots of the cache on the devices: where a run's keys and values are while it is decoded, and back."""

import heapq

import jax
import numpy as np

from lmkit.decode.engine.programs import Programs
from lmkit.decode.engine.runs import Place, Run
from lmkit.decode.engine.traced import EACH, Group, Rules, Text


class Slots:
    """Groups of rows that take their steps together, and who has which row.

    The lowest free one is taken first, so that steps have few rows where few texts run.
    """

    def __init__(self, programs: Programs, count: int):
        self._programs, self.count = programs, count
        self._in_group = programs.sizes.group * programs.parts
        groups = range(-(-count // self._in_group))
        self.groups: list[Group] = [programs.group() for _ in groups]
        self.rules: list[Rules] = [programs.rules(programs.sizes.group) for _ in groups]
        self._free = list(range(count))
        self.running: dict[int, Run] = {}

    def place(self, slot: int) -> Place:
        group, inside = divmod(slot, self._in_group)
        return Place(group, *divmod(inside, self._programs.parts))

    def of(self, group: int) -> list[tuple[Place, Run]]:
        """The running ones of a group."""
        placed = [(self.place(slot), run) for slot, run in self.running.items()]
        return [(place, run) for place, run in placed if place.group == group]

    def give(self, run: Run) -> None:
        """A slot to a run whose cache lies outside."""
        run.slot, run.since = heapq.heappop(self._free), run.chosen
        self.running[run.slot] = run
        programs, place, at = self._programs, self.place(run.slot), self._at(run.slot)
        text, token = run.text, run.token
        assert text is not None
        if isinstance(token, np.ndarray):  # it was taken out before
            text, token = programs.text(text), programs.put(token, EACH)
        self.groups[place.group] = programs("put")(self.groups[place.group], (*text, token), at)
        if run.rules is not None:
            self.rules[place.group] = programs("put_rules")(self.rules[place.group], run.rules, at)
        run.text = run.token = run.rules = None

    def take(self, run: Run) -> None:
        """Its slot from a run: the cache to the host, bit for bit."""
        programs, place, at = self._programs, self.place(run.slot), self._at(run.slot)
        *text, token = programs("take")(self.groups[place.group], at)
        run.text, run.token = Text(*map(np.asarray, text)), np.asarray(token)
        if run.ruled:
            run.rules = Rules(*programs("take_rules")(self.rules[place.group], at))
        self.release(run)

    def release(self, run: Run) -> None:
        """What the slot holds is not needed any more."""
        del self.running[run.slot]
        heapq.heappush(self._free, run.slot)
        run.slot = -1

    def _at(self, slot: int) -> jax.Array:
        return self._programs.put(np.array(self.place(slot)[1:], np.int32), (None,))
