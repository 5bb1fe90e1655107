"""How long a compiled program takes, if each of its operations costs what a price list says.

The text of a scheduled program lists operations in the order in which a device begins them. Work that is started and
waited for later (`copy-start`, `all-gather-start`) runs on a lane of its own, one after another there, beside the
operations between its start and its end; what it takes longer is waited for. A loop takes its body's time as often as
it runs; of a conditional's cases the longest counts.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lmkit.compiler.hlo import Instruction, Program, trip_count

PRODUCT, OTHER, KERNEL, COPY, NETWORK = "product", "other", "kernel", "copy", "collective"


class Price(NamedTuple):
    """What an operation costs, each time that it runs."""

    seconds: float
    kind: str
    flops: float = 0.0
    num_bytes: float = 0.0  # read and written
    label: str = ""  # the name of the library's call, or the kind of collective
    launches: int = 0  # kernels
    starts: str = ""  # it begins something that runs beside what follows, up to what ends the same
    ends: str = ""  # it waits for what was begun under this name


class Operation(NamedTuple):
    """What the same line of the model's code costs in a step."""

    kind: str
    source: str  # the operation in the model's code
    place: str  # file:line
    seconds: float  # busy; of what runs beside others, more than it lengthens the step
    times: int
    flops: float
    num_bytes: float
    label: str
    launches: int


class Timeline(NamedTuple):
    """A step of a compiled program."""

    seconds: float
    waited: dict[str, float]  # of these seconds, those that only wait, by lane: NETWORK and COPY
    operations: list[Operation]  # longest first
    unknown_loops: list[str]  # which count as run once, as the text does not say how often

    def busy(self, *kinds: str) -> float:
        """Seconds of all operations of these kinds."""
        return sum(one.seconds for one in self.operations if one.kind in kinds)

    @property
    def product_share(self) -> float:
        """Share of the step's time in matrix products, those of kernels included."""
        return self.busy(PRODUCT, KERNEL) / self.seconds if self.seconds else 0.0


PriceList = Callable[[Program, dict[str, Instruction], Instruction], Price | None]


class _Spent(NamedTuple):
    """Once through a computation."""

    seconds: float
    waited: dict[str, float]
    prices: list[tuple[Instruction, Price, int]]


def timeline(program: Program, price_of: PriceList) -> Timeline:
    """The step.

    Args:
        program: of a scheduled text.
        price_of: what an instruction costs, given its computation's lines; None where it is free or not known to it.
            What an instruction starts runs beside what follows if its kind is NETWORK or COPY.
    """
    walk = _Walk(program, price_of)
    spent = walk.through(program.entry)
    sums: dict[tuple[str, str, str, str], Operation] = {}
    for one, price, times in spent.prices:
        name = (price.kind, one.source, program.place(one), price.label)
        old = sums.get(name, Operation(*name[:3], 0.0, 0, 0.0, 0.0, price.label, 0))
        sums[name] = old._replace(
            seconds=old.seconds + times * price.seconds, times=old.times + times,
            flops=old.flops + times * price.flops, num_bytes=old.num_bytes + times * price.num_bytes,
            launches=old.launches + times * price.launches,
        )  # fmt: skip
    longest = sorted(sums.values(), key=lambda one: -one.seconds)
    return Timeline(spent.seconds, spent.waited, longest, walk.unknown_loops)


class _Walk:
    """Through the computations of a program, each once."""

    def __init__(self, program: Program, price_of: PriceList) -> None:
        self.program, self.price_of = program, price_of
        self.known: dict[str, _Spent] = {}
        self.unknown_loops: list[str] = []

    def through(self, name: str) -> _Spent:
        if name not in self.known:
            self.known[name] = self._spent(name)
        return self.known[name]

    def _spent(self, name: str) -> _Spent:
        lines = self.program.computations.get(name, {})
        now, waited, prices = 0.0, {}, []
        free_at: dict[str, float] = {}  # when a lane has done what was started on it
        ends: dict[str, tuple[str, float]] = {}  # lane, and when it ends, by the name of what was started
        for one in lines.values():
            inner = self._inner(name, one)
            price = self.price_of(self.program, lines, one) if not inner.prices else None
            begun, awaited = _names(one, price)
            if awaited:
                lane, end = ends.get(awaited, ("", now))
                if begun:  # it only passes it on
                    ends[begun] = lane, end
                elif end > now:
                    waited[lane] = waited.get(lane, 0.0) + end - now
                    now = end
                continue
            seconds = inner.seconds + (price.seconds if price else 0.0)
            prices += [*inner.prices, *([(one, price, 1)] if price else [])]
            lane = price.kind if price else next((p.kind for _, p, _ in inner.prices), OTHER)
            if begun and lane in (NETWORK, COPY):
                free_at[lane] = max(now, free_at.get(lane, 0.0)) + seconds
                ends[begun] = lane, free_at[lane]
                continue
            now += seconds
            for lane, more in inner.waited.items():
                waited[lane] = waited.get(lane, 0.0) + more
            if price is not None and price.kind == NETWORK:  # nothing else runs
                waited[NETWORK] = waited.get(NETWORK, 0.0) + seconds
        return _Spent(now, waited, prices)

    def _inner(self, where: str, one: Instruction) -> _Spent:
        """What an instruction's computations take; those of a fusion or a reduction have no time of their own."""
        if one.opcode == "while":
            times = trip_count(self.program, where, one)
            if times is None:
                self.unknown_loops.append(one.name)
            return _repeated(self.through(one.body), 1 if times is None else times)
        cases = [self.through(called) for called in one.called if one.opcode in ("conditional", "call", "async-start")]
        return max(cases, key=lambda case: case.seconds, default=_Spent(0.0, {}, []))


def _names(one: Instruction, price: Price | None) -> tuple[str, str]:
    """What an instruction begins, and what it waits for, as names; "" for none."""
    if one.opcode.endswith("-start"):
        return one.name, ""
    if one.opcode.endswith("-update"):
        return one.name, one.operands[0]
    if one.opcode.endswith("-done"):
        return "", one.operands[0]
    return (price.starts, price.ends) if price else ("", "")


def _repeated(spent: _Spent, times: int) -> _Spent:
    waited = {lane: seconds * times for lane, seconds in spent.waited.items()}
    return _Spent(spent.seconds * times, waited, [(one, price, n * times) for one, price, n in spent.prices])


def fused(program: Program, one: Instruction) -> Iterator[Instruction]:
    """The instruction and all that it calls: of a fusion, what is fused."""
    yield one
    for called in one.called:
        for inner in program.computations.get(called, {}).values():
            yield from fused(program, inner)
