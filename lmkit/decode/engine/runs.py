"""A request on its way through the engine, and the queue that it waits in."""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lmkit.decode.engine.traced import Rules, Text
from lmkit.decode.request import Emit, Request

_GREEDY_BELOW = 1e-5  # a temperature by which scores would overflow


class Piece(NamedTuple):
    """Tokens of a prompt that go through the model together: `count` of them, padded to `size`."""

    start: int
    size: int
    count: int


def pieces_of(num_tokens: int, sizes: Sequence[int]) -> list[Piece]:
    """A prompt in pieces: full ones of the largest size, the rest in the smallest that holds it."""
    full, rest = divmod(num_tokens, sizes[-1])
    pieces = [Piece(number * sizes[-1], sizes[-1], sizes[-1]) for number in range(full)]
    if rest:
        pieces.append(Piece(full * sizes[-1], min(size for size in sizes if size >= rest), rest))
    return pieces


class Place(NamedTuple):
    """Where a slot is."""

    group: int
    row: int  # in its part
    part: int  # of the batch


@dataclass(eq=False)
class Run:
    """A request and where it stands. Only the engine's thread writes to it, but for `cancelled`."""

    request: Request
    emit: Emit
    cancelled: bool = False
    ended: bool = False
    version: int = -1  # of the parameters; -1 until it is admitted
    pieces: deque[Piece] = field(default_factory=deque)  # of the prompt, not yet computed
    keys: list[bytes] = field(default_factory=list)  # of the prompt's full pieces
    text: Text | None = None  # its cache, while it has no slot
    token: Any = None  # the last one that was chosen, while it has no slot
    rules: Rules | None = None  # while it has no slot
    slot: int = -1
    length: int = 0  # tokens in its cache
    chosen: int = 0  # tokens that the device has chosen or will, by what was dispatched
    read: int = 0  # tokens that were handed out
    since: int = 0  # `chosen` when it got its slot
    cached: int = 0  # tokens of the prompt that were not computed
    mask_V: np.ndarray | None = None  # what its grammar lets come next, bool

    @property
    def ruled(self) -> bool:
        """Whether its scores depend on what was written, or have biases."""
        request = self.request
        penalties = request.presence_penalty, request.frequency_penalty, request.sampling.repetition_penalty - 1
        return any(penalties) or bool(request.logit_bias)

    @property
    def plain(self) -> bool:
        """Whether its tokens are the likeliest ones."""
        drawn = self.request.sampling.temperature >= _GREEDY_BELOW
        return not (drawn or self.ruled or self.request.grammar is not None)

    def floats(self) -> list[float]:
        """A row of `Numbers.floats_RF`."""
        request, how = self.request, self.request.sampling
        temperature = how.temperature if how.temperature >= _GREEDY_BELOW else 0.0
        penalties = how.repetition_penalty, request.presence_penalty, request.frequency_penalty
        return [temperature, how.top_p, how.min_p, *penalties]

    def ints(self) -> list[int]:
        """A row of `Numbers.ints_RI`."""
        seed = self.request.seed % 2**64
        return [self.request.sampling.top_k, self.chosen, seed >> 32, seed % 2**32, self.ruled]

    def tables(self, vocab: int) -> list[np.ndarray]:
        """A row of each of `Rules`, before the first token."""
        seen_V, bias_V = np.zeros(vocab, bool), np.zeros(vocab, np.float32)
        seen_V[[token for token in self.request.tokens if token < vocab]] = True
        for token, bias in self.request.logit_bias.items():
            bias_V[token] = bias
        return [seen_V, np.zeros(vocab, np.int32), bias_V]


class Waiting:
    """Runs in the order in which they came; those of different owners take turns."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, deque[Run]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(runs) for runs in self._owners.values())

    def __iter__(self) -> Iterator[Run]:
        return iter([run for runs in self._owners.values() for run in runs])

    @property
    def owners(self) -> list[str]:
        """Whose turn it is, first to last."""
        return list(self._owners)

    def first(self, owner: str) -> Run:
        return self._owners[owner][0]

    def push(self, run: Run, *, front: bool = False) -> None:
        runs = self._owners.setdefault(run.request.owner, deque())
        (runs.appendleft if front else runs.append)(run)

    def pop(self, owner: str) -> Run:
        """The owner's next one; the owner's next turn is after all others'."""
        run = self._owners[owner].popleft()
        self._owners.move_to_end(owner)
        self._drop_empty(owner)
        return run

    def remove(self, run: Run) -> None:
        self._owners[run.request.owner].remove(run)
        self._drop_empty(run.request.owner)

    def _drop_empty(self, owner: str) -> None:
        if not self._owners[owner]:
            del self._owners[owner]
