"""What a compiled program sends between devices, read from its text (`compiled.as_text()`).

Works on what XLA writes for CPUs, GPUs and TPUs: loops count as often as they run, an asynchronous collective as one
however many pieces it is in, and each is told by the mesh axes that its groups of devices span.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lmkit.compiler.hlo import Array, Instruction, Program, is_sliced, parse, size_of, trip_count

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
SLICED = "all-reduce + slice"  # a reduce-scatter that the compiler could only make of an all-reduce: twice the bytes


class Collective(NamedTuple):
    """One collective of the program."""

    kind: str  # one of KINDS, or SLICED
    sent_bytes: float  # by a device, each time
    group: int  # devices that take part in it together
    axes: tuple[str, ...]  # of the mesh, that a group spans
    times: int  # a step
    looped: bool  # inside a loop
    dtype: str
    shapes: tuple[tuple[int, ...], ...]  # of what it gives a device (an all-reduce + slice: before the slice)
    source: str  # the operation in the model's code

    @property
    def step_bytes(self) -> float:
        """What a device sends in it in a step."""
        return self.sent_bytes * self.times


class Traffic(NamedTuple):
    """Collectives that belong together: how many in a step, and the bytes that a device sends in them."""

    count: int
    sent_bytes: float


def collectives(text: str, sizes: Mapping[str, int]) -> list[Collective]:
    """The collectives of a compiled program; those among one device left out.

    Args:
        text: what `as_text()` gives.
        sizes: of the mesh's axes, in the mesh's order.

    A branch counts as the one of its cases that sends most.
    """
    program = parse(text)
    return list(_walk(program, program.entry, sizes, {}))


def total(found: Iterable[Collective], *by: str) -> dict[tuple, Traffic]:
    """The sums over collectives that agree in some fields, largest first: total(found, "axes", "kind")."""
    sums: dict[tuple, Traffic] = {}
    for one in found:
        name = tuple(getattr(one, field) for field in by)
        count, sent = sums.get(name, (0, 0.0))
        sums[name] = Traffic(count + one.times, sent + one.step_bytes)
    return dict(sorted(sums.items(), key=lambda item: -item[1].sent_bytes))


def _walk(program: Program, name: str, sizes: Mapping[str, int], known: dict) -> list[Collective]:
    """The collectives of a computation and of those that it calls, once through it."""
    if name in known:
        return known[name]
    found: list[Collective] = []
    lines = program.computations.get(name, {})
    for one in lines.values():
        if one.kind or one.opcode == "fusion":
            found += collectives_of(program, lines, one, sizes)
        elif one.opcode == "while":
            found += _repeated(program, name, one, _walk(program, one.body, sizes, known))
        elif one.opcode == "conditional":
            cases = [_walk(program, case, sizes, known) for case in one.called]
            found += max(cases, key=lambda case: sum(c.step_bytes for c in case), default=[])
        else:
            found += [c for called in one.called for c in _walk(program, called, sizes, known)]
    known[name] = found
    return found


def collectives_of(
    program: Program, lines: dict[str, Instruction], one: Instruction, sizes: Mapping[str, int]
) -> list[Collective]:
    """What an instruction sends once: a collective, or a fusion that carries one; [] for others.

    `lines`: of its computation.
    """
    if one.kind:
        return [] if _continues(lines, one) else _collective(program, lines, one, sizes)
    if one.opcode != "fusion":
        return []
    inner = [(called, each) for called in one.called for each in program.computations.get(called, {}).values()]
    sent = [
        (called, c)
        for called, each in inner
        for c in collectives_of(program, program.computations[called], each, sizes)
    ]
    return [_scattered(c, one) if "all-reduce-scatter" in called else c for called, c in sent]


def _repeated(program: Program, where: str, loop: Instruction, body: list[Collective]) -> list[Collective]:
    times = trip_count(program, where, loop) if body else 0
    if times is None:
        raise ValueError(f"the loop {loop.name} has collectives, and its text does not say how often it runs")
    return [c._replace(times=c.times * times, looped=True) for c in body]


def _continues(lines: dict[str, Instruction], one: Instruction) -> bool:
    """Whether it is a further piece of a collective that a TPU runs beside other work, begun somewhere else."""
    if "chain_id=" not in one.text:
        return False
    users = (user.text for user in lines.values() if one.name in user.operands)
    return not any("AsyncCollectiveStart" in text for text in users)


def _collective(
    program: Program, lines: dict[str, Instruction], one: Instruction, sizes: Mapping[str, int]
) -> list[Collective]:
    """One collective; an all-reduce of several arrays, of which some are sliced, counts as two."""
    group, axes = _group(one.text, sizes)
    if group == 1:
        return []
    by_kind: dict[str, list[Array]] = {}
    for index, array in enumerate(one.result):
        sliced = one.kind == "all-reduce" and is_sliced(program, lines, one, index, group)
        by_kind.setdefault(SLICED if sliced else one.kind, []).append(array)
    return [
        Collective(
            kind, _sent(kind, sum(size_of(array) for array in arrays), group), group, axes, 1, False,
            "+".join(sorted({dtype for dtype, _ in arrays})), tuple(shape for _, shape in arrays), one.source,
        )
        for kind, arrays in by_kind.items()
    ]  # fmt: skip


def _sent(kind: str, size: float, group: int) -> float:
    """Bytes that a device sends, for a result of `size` bytes, where each byte travels as seldom as can be.

    Its part of a gather to all others; all others' parts of what is scattered; both in a reduce (Thakur et al. 2005,
    section 4).
    """
    share = (group - 1) / group
    both = 2 * size * share
    return {"all-gather": size * share, "reduce-scatter": size * (group - 1), "all-to-all": size * share,
            "collective-permute": size, "all-reduce": both, SLICED: both}[kind]  # fmt: skip


def _scattered(inner: Collective, fusion: Instruction) -> Collective:
    """A TPU's fused all-reduce and slice, which runs as a reduce-scatter."""
    size = sum(size_of(array) for array in fusion.result)
    shapes = tuple(shape for _, shape in fusion.result)
    sent = _sent("reduce-scatter", size, inner.group)
    return inner._replace(kind="reduce-scatter", sent_bytes=sent, shapes=shapes, source=fusion.source or inner.source)


def _group(text: str, sizes: Mapping[str, int]) -> tuple[int, tuple[str, ...]]:
    """Devices of a group, and the mesh axes along which they differ."""
    members = next(_groups(text, math.prod(sizes.values())), None)
    if members is None:
        return 1, ()
    places = np.unravel_index(members, tuple(sizes.values())) if sizes else ()
    axes = tuple(axis for axis, place in zip(sizes, places, strict=True) if len(set(place.tolist())) > 1)
    return len(members), axes


def _groups(text: str, devices: int) -> Iterator[np.ndarray]:
    """The first group of devices of a collective, by their numbers in the mesh."""
    if match := re.search(r"source_target_pairs=\{(.*?)\}(?:,\s\w|$)", text):
        pairs = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", match[1] + "}")]
        moving = [pair for pair in pairs if pair[0] != pair[1]]
        if moving:
            yield np.array(moving[0])
    elif match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}", text):
        yield _by_axes(*match.groups())
    elif match := re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", text):
        yield _tiles(match[1])[0]
    elif match := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        yield np.array([int(n) for n in match[1].split(",") if n])
    elif "replica_groups={}" in text:
        yield np.arange(devices)


def _tiles(text: str) -> np.ndarray:
    """[4,2]<=[2,4]T(1,0): numbers 0.. in the second shape, transposed, as the first shape."""
    match = re.fullmatch(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?", text)
    assert match, text
    shape, source, order = ([int(n) for n in part.split(",")] if part else None for part in match.groups())
    assert shape is not None
    source = source or shape
    return np.arange(math.prod(shape)).reshape(source).transpose(order or range(len(source))).reshape(shape)


def _by_axes(mesh: str, device_ids: str | None, axes: str) -> np.ndarray:
    """The first group of `mesh['a'=64,'b'=4] {'b'}`; a part of an axis is 'a':(4)2, two parts after the outer four."""
    names = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    devices = np.arange(math.prod(names.values()))
    if device_ids:
        tiles = _tiles(device_ids) if device_ids.startswith("[") else np.fromstring(device_ids, sep=",", dtype=int)
        devices = tiles.reshape(-1)
    wanted = [(m[0], m[1], m[2]) for m in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)]
    shape: list[int] = []
    chosen: list[int] = []
    for name, size in names.items():
        parts = [(int(before), int(count)) for axis, before, count in wanted if axis == name and count]
        if parts:
            before, count = parts[0]
            shape += [before, count, size // before // count]
            chosen.append(len(shape) - 2)
        else:
            shape.append(size)
            chosen += [len(shape) - 1] if any(axis == name for axis, _, _ in wanted) else []
    grid = devices.reshape(shape)
    index = tuple(slice(None) if dim in chosen else 0 for dim in range(grid.ndim))
    return grid[index].reshape(-1)
