"""What every configuration section is made of: documented, range-checked keys and one error type.

Nothing here imports jax, hydra or omegaconf: importing the configuration costs a few milliseconds.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator
from enum import Enum
from numbers import Integral, Real
from typing import Any, ClassVar


class UserError(Exception):
    """Something the user can mend. The message is one line that names what is wrong and the way out."""


class ConfigError(UserError, ValueError):
    """A mistake in what was asked for; the message names both values."""


def key(
    default: Any, doc: str, *, at_least: float | None = None, at_most: float | None = None,
    changes_results: bool | None = None,
) -> Any:  # fmt: skip
    """A configuration key: its default, its documentation, and the range its value may take (inclusive).

    A key that does not change results (but where, how fast, how often) may differ when a run is resumed; None: as its
    section says.
    """
    metadata = {"doc": doc, "at_least": at_least, "at_most": at_most, "changes_results": changes_results}
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: _fresh(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _fresh(default: Any) -> Any:
    return dataclasses.replace(default) if dataclasses.is_dataclass(default) else type(default)(default)  # type: ignore


@dataclasses.dataclass
class Section:
    """Base of every section. An instance checks its declared ranges when it is made; no number is NaN or infinite."""

    section: ClassVar[str] = ""
    changes_results: ClassVar[bool] = True  # false: none of its keys does, but those that say so

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            self._check_type(field.name, field.type, value)
            self._check_finite(field.name, value)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            low, high = field.metadata.get("at_least"), field.metadata.get("at_most")
            if low is not None and value < low:
                raise ConfigError(f"{self.section}.{field.name}={value}: it must be at least {low}")
            if high is not None and value > high:
                raise ConfigError(f"{self.section}.{field.name}={value}: it must be at most {high}")

    def _check_finite(self, name: str, value: Any) -> None:
        values = {f".{k}": v for k, v in value.items()} if isinstance(value, dict) else {"": value}
        for where, one in values.items():
            if isinstance(one, float) and not math.isfinite(one):
                raise ConfigError(f"{self.section}.{name}{where}={one}: give a finite number")

    def _check_type(self, name: str, kind: Any, value: Any) -> None:
        """Raises ConfigError for a value that is not of the key's plain type: position="learned" equals no Position."""
        kinds = {bool: bool, int: Integral, float: Real, str: str}
        plain = isinstance(kind, type) and (issubclass(kind, Enum) or kind in kinds)
        if plain and not isinstance(value, kinds.get(kind, kind)):
            names = [f"{kind.__name__}.{one.name}" for one in kind] if issubclass(kind, Enum) else []
            way_out = f"one of {', '.join(names)}" if names else f"a value of type {kind.__name__}"
            raise ConfigError(f"{self.section}.{name}={value!r}: give {way_out}")


def unescaped(text: str) -> str:
    r"""The text with \n, \r and \t as the characters that they stand for: a shell hands on a backslash and a letter."""
    return text.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t")


def nearest(word: str, valid: Iterable[str]) -> str:
    """' Did you mean X?' for the valid word closest to `word`, or '' where none is close."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def keys_of(schema: type, prefix: str = "") -> list[tuple[str, str, Any, str]]:
    """Every key of a section as (dotted name, type, default, documentation), depth first."""
    rows: list[tuple[str, str, Any, str]] = []
    for name, field, _ in _walk(schema, prefix):
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = "(required)"
        shown = default.name if isinstance(default, Enum) else default
        rows.append((name, _type_name(field.type), shown, field.metadata.get("doc", "")))
    return rows


def free_keys(schema: type, prefix: str = "") -> set[str]:
    """The dotted names of the keys that do not change results."""

    def changes(field: dataclasses.Field, section: type) -> bool:
        own = field.metadata.get("changes_results")
        return getattr(section, "changes_results", True) if own is None else own

    return {name for name, field, section in _walk(schema, prefix) if not changes(field, section)}


def _walk(schema: type, prefix: str) -> Iterator[tuple[str, dataclasses.Field, type]]:
    """Every key as (dotted name, field, its section), depth first."""
    for field in dataclasses.fields(schema):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from _walk(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, schema


def _type_name(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(member.name for member in kind)
    return (
        getattr(kind, "__name__", str(kind)) if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    )
