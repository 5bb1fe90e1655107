"""What the compiler says: the very step that `train` would run, compiled for hardware that need not be here."""

import re
import time
from typing import NamedTuple

import jax

from lmkit.compiler.choice import WHOLE
from lmkit.compiler.collectives import Collective, collectives
from lmkit.compiler.hlo import parse, size_of
from lmkit.compiler.topology import hardware_devices
from lmkit.config.base import ConfigError
from lmkit.core.aot import lower_ahead
from lmkit.core.options import compile_lowered
from lmkit.core.setup import program_bytes
from lmkit.core.state import local_bytes
from lmkit.cost.context import PlanContext
from lmkit.plan.timed import Timed, timed_of

_REFUSED = re.compile(r"temporaries \(([\d.]+)([KMGT])\)|[Uu]sed ([\d.]+)([KMGT])")
_VIEWS = (
    "parameter", "bitcast", "get-tuple-element", "tuple", "while", "conditional", "call", "optimization-barrier",
)  # fmt: skip
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Large(NamedTuple):
    """An array that the program makes, somewhere in a step."""

    size: float  # bytes a device
    array: str  # bf16[8,1024,3072]
    source: str  # the operation in the model's code


class Compiled(NamedTuple):
    """What a compiler made of the step, in bytes a device."""

    seconds: float  # that it took
    arguments: float  # the state and the batch
    temporary: float
    peak: float  # all that is there at once
    host: float
    sent: list[Collective]
    arrays: list[Large]  # the largest that it makes
    refusal: str  # the compiler's own words where it found that it does not fit; only peak is known then, or 0
    timed: Timed | None = None  # how long the step takes; None on a CPU, and where it does not fit
    options: str = ""  # of the compiler, and why, where they were chosen

    def fits(self, limit: float) -> bool:
        """In so many bytes of a device; 0 = not known."""
        return not self.refusal and (limit == 0 or self.peak <= limit)


def compiled_plan(context: PlanContext) -> Compiled:
    """As `train` would compile it. Raises ConfigError where no compiler for that hardware is here.

    What is sent is counted with a TPU's collective matmul off, if it was compiled so.
    """
    experiment, began = context.experiment, time.perf_counter()
    devices = hardware_devices(experiment.hardware, experiment.mesh.num_slices)
    try:
        blueprint, lowered = lower_ahead(experiment, devices)
        fastest = compile_lowered(experiment, blueprint, lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = str(error).split(": ", 1)[-1].splitlines()[0]
        return Compiled(time.perf_counter() - began, 0, 0, _needed(words, context), 0, [], [], words)
    seconds = time.perf_counter() - began
    analysis = fastest.compiled.memory_analysis()
    if analysis is None:
        raise ConfigError(f"hardware={experiment.hardware.name}: its compiler does not tell what memory it uses")
    peak = float(program_bytes(analysis, experiment.hardware.platform))
    host = float(getattr(analysis, "host_temp_size_in_bytes", 0))
    text = fastest.compiled.as_text() or ""
    countable = fastest.programs.get(WHOLE, fastest.compiled).as_text() or ""
    return Compiled(
        seconds, float(analysis.argument_size_in_bytes), float(analysis.temp_size_in_bytes), peak, host,
        collectives(countable, blueprint.mesh.shape), large_arrays(text), "", timed_of(context, text), fastest.words,
    )  # fmt: skip


def _needed(words: str, context: PlanContext) -> float:
    """What the compiler says that it would take; where it counts temporaries alone, with the state. 0: it does not."""
    if not (found := _REFUSED.search(words)):
        return 0.0
    temporary, unit, used, other = found.groups()
    if temporary:
        return float(temporary) * _UNITS[unit] + local_bytes(context.blueprint.shapes)
    return float(used) * _UNITS[other]


def large_arrays(text: str, most: int = 10) -> list[Large]:
    """The largest arrays that a compiled program makes, each kind of them once; not all are there at the same time."""
    program = parse(text)
    fused = {name for lines in program.computations.values() for one in lines.values() if one.opcode == "fusion"
             for name in one.called}  # fmt: skip
    found: dict[tuple[str, str], Large] = {}
    for name, lines in program.computations.items():
        for one in lines.values() if name not in fused else ():
            if one.opcode in _VIEWS or "S(" in one.type:  # a view, or in another memory
                continue
            for dtype, shape in one.result:
                array = f"{dtype}[{','.join(map(str, shape))}]"
                found.setdefault((array, one.source), Large(size_of((dtype, shape)), array, one.source))
    return sorted(found.values(), key=lambda large: -large.size)[:most]
