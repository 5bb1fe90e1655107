"""The options that a program is compiled with, chosen by measurement: several are tried, the fastest text is kept.

An option that speeds up one program slows down another. A TPU's collective matmul cuts a gather of weights into steps
beside the product. On large shards that hides the network; on small ones the pieces are slower than the whole: by the
compiler's cycles 2.5 times the step of gpt2_124m on v5e:2x4 with fsdp=8. So each program is compiled both ways.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lmkit.compiler.topology import COUNTABLE
from lmkit.config.base import ConfigError
from lmkit.files import write_json

PLAIN, WHOLE = "as they come", "no collective matmul"
TPU_OPTIONS: dict[str, dict[str, Any]] = {PLAIN: {}, WHOLE: COUNTABLE}


class Fastest(NamedTuple):
    """A compiled program, and how its options were found."""

    compiled: Any
    name: str  # of its options
    seconds: dict[str, float]  # of a step by options; those of a remembered choice, too; {} where there was no choice
    programs: dict[str, Any]  # what was compiled now

    @property
    def words(self) -> str:
        """One line for people; "" where there was no choice."""
        times = ", ".join(f"{seconds * 1e3:,.1f} ms {name}" for name, seconds in self.seconds.items())
        return f"compiler options: {self.name}; a step by the compiler's cycles: {times}" if self.seconds else ""


def compile_fastest(
    lowered: Any, candidates: Mapping[str, dict[str, Any]], seconds_of: Callable[[str], float], remembered: Path | None
) -> Fastest:
    """The program with the options of which its text takes least time.

    Args:
        lowered: what jax lowered, not yet compiled.
        candidates: options of the compiler by name; of one alone nothing is measured.
        seconds_of: a step, by the text of a compiled program. Where it raises ConfigError (a device whose clock is not
            known) the first candidate is taken.
        remembered: a file that holds an earlier choice for this very program; it is written where there is none.

    What does not fit the device is no candidate; raises the compiler's last error where none fits.
    """
    known = _read(remembered, candidates)
    if known is not None:
        name, seconds = known
        compiled = lowered.compile(candidates[name] or None)
        return Fastest(compiled, name, seconds, {name: compiled})
    programs, failure = {}, None
    for name, options in candidates.items():
        try:
            programs[name] = lowered.compile(options or None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            failure = error
    if not programs:
        assert failure is not None
        raise failure
    first = next(iter(programs))
    if len(candidates) == 1:
        return Fastest(programs[first], first, {}, programs)
    try:
        seconds = {name: seconds_of(compiled.as_text() or "") for name, compiled in programs.items()}
    except ConfigError:
        return Fastest(programs[first], first, {}, programs)
    best = min(seconds, key=lambda name: seconds[name])
    if remembered is not None:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_json(remembered, {"options": best, "seconds": seconds})
    return Fastest(programs[best], best, seconds, programs)


def choice_file(folder: Path, lowered: Any, *versions: str) -> Path:
    """Where the choice for a program is remembered: by its text, and by what compiles it."""
    text = json.dumps([lowered.as_text(), jax.__version__, *versions])
    return folder / "options" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _read(path: Path | None, candidates: Mapping[str, dict[str, Any]]) -> tuple[str, dict[str, float]] | None:
    """The remembered name and seconds; None where there are none, or what is there is damaged or of other options."""
    try:
        found = json.loads(path.read_text()) if path is not None else {}
        name, seconds = found["options"], {str(key): float(value) for key, value in found["seconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (name, seconds) if name in candidates and set(seconds) <= set(candidates) else None
