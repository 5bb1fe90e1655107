"""The most expensive ops of a jax.profiler trace.

The folder that a trace was written to opens in xprof and in TensorBoard's profile plug-in as it is.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name=\"([^\"]*)\"", re.MULTILINE)


class Event(NamedTuple):
    """An op on a line of the trace: one thread, or one stream of a device."""

    name: str
    start_ns: float
    duration_ns: float


def op_names(hlo_text: str) -> dict[str, str]:
    """Of each instruction of a compiled program, the operation of jax that it comes from."""
    return {name: _short(path) for name, path in _INSTRUCTION.findall(hlo_text)}


def _short(path: str) -> str:
    """jit(train_step)/transpose(jvp())/while/body/dot_general as its last four parts."""
    return "/".join(path.split("/")[-4:])


def expensive_ops(folder: Path, names: Mapping[str, str], most: int = 10) -> list[dict[str, Any]]:
    """The ops with the most time of their own, each with its share of all ops' time.

    A loop's time is that of the ops in it and counts as theirs. Raises ValueError where the trace has no ops.
    """
    own: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for path in sorted(folder.rglob("*.xplane.pb")):
        for line in _lines(jax.profiler.ProfileData.from_file(str(path))):
            for event, seconds in own_seconds(line):
                own[event.name] += seconds
                calls[event.name] += 1
    if not own:
        raise ValueError(f"{folder}: the trace has no ops")
    total = sum(own.values())
    ranked = sorted(own, key=lambda name: -own[name])[:most]
    return [
        {"op": name, "what": names.get(name, ""), "calls": calls[name], "ms": 1e3 * own[name]}
        | {"share": own[name] / total}
        for name in ranked
    ]  # fmt: skip


def _lines(data: Any) -> Iterable[list[Event]]:
    """Ops by thread or stream: of the devices where the trace has them, else of the host, which then is the device."""
    planes = list(data.planes)
    for plane in [one for one in planes if one.name.startswith("/device:")] or planes:
        lines = list(plane.lines)
        ops = [line for line in lines if line.name == "XLA Ops"]  # a TPU's, where other lines say the same again
        for line in ops or lines:
            named = ((one.name if ops else _instruction(one), one) for one in line.events)
            found = [Event(name, one.start_ns, one.duration_ns) for name, one in named if name]
            if found:
                yield found


def _instruction(event: Any) -> str:
    """The instruction that an event ran; a GPU's events have the names of kernels. '' where it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a built-in type of jaxlib has no module
        found = [str(value) for name, value in event.stats if name == "hlo_op"]
    return found[0] if found and not event.name.startswith("end: ") else ""


def own_seconds(line: Iterable[Event]) -> Iterable[tuple[Event, float]]:
    """Each event of a line with its duration less that of the events inside it."""
    inside: dict[int, float] = defaultdict(float)
    events = sorted(line, key=lambda one: (one.start_ns, -one.duration_ns))
    stack: list[int] = []
    for number, event in enumerate(events):
        while stack and _end(events[stack[-1]]) <= event.start_ns:
            stack.pop()
        if stack:
            inside[stack[-1]] += min(event.duration_ns, _end(events[stack[-1]]) - event.start_ns)
        stack.append(number)
    for number, event in enumerate(events):
        yield event, max(event.duration_ns - inside[number], 0.0) / 1e9


def _end(event: Event) -> float:
    return event.start_ns + event.duration_ns


def op_table(ops: list[dict[str, Any]]) -> str:
    """For the terminal."""
    lines = [f"{'share':>6} {'ms':>9} {'calls':>6}  op"]
    lines += [
        f"{one['share']:6.1%} {one['ms']:9.2f} {one['calls']:6}  {one['op']}  {one['what']}".rstrip() for one in ops
    ]
    return "\n".join(lines)
