"""The body of a request, member by member: types and ranges are checked, and what nobody takes is refused."""

import json
import math
from collections.abc import Collection, Sequence
from typing import Any

from lmkit.config.base import nearest
from lmkit.serve.errors import bad
from lmkit.serve.refusal import Refused

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list",
          dict: "an object"}  # fmt: skip


def parse(content: bytes) -> dict[str, Any]:
    """A JSON object. Raises Refused for anything else: NaN, lone surrogates and numbers without end, too."""
    try:
        found = json.loads(content, parse_constant=_refuse_constant)
        json.dumps(found, ensure_ascii=False).encode()  # lone surrogates are no text
    except (ValueError, RecursionError) as error:
        raise bad(None, f"the body is not JSON: {str(error).splitlines()[0]}", "invalid_json") from None
    if not isinstance(found, dict):
        raise bad(None, f"the body is {shown(found)}: send a JSON object", "invalid_json")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Fields:
    """The members of an object. Each is taken once; null counts as absent.

    Args:
        values: the object.
        where: what stands before a member's name in an error, such as `response_format.`.
        param: the member of the body that errors name; "" for the one that is wrong itself.
    """

    def __init__(self, values: dict[str, Any], where: str = "", param: str = ""):
        self._left, self.where, self._param, self._known = dict(values), where, param, set()

    def take(self, name: str, *kinds: type) -> Any:
        """The member, None where it is absent. Raises Refused where it is of another kind."""
        self._known.add(name)
        value = self._left.pop(name, None)
        if value is None or not kinds:
            return value
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            wanted = " or ".join(_KINDS[kind] for kind in kinds)
            raise self.bad(name, f"{shown(value)} is not {wanted}")
        return value

    def bad(self, name: str, message: str) -> Refused:
        return bad(self._param or self.where + name, f"{self.where}{name}: {message}")

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.take(name, bool)
        return default if value is None else value

    def text(self, name: str, default: str = "") -> str:
        value = self.take(name, str)
        return default if value is None else value

    def integer(self, name: str, default: int, low: int, high: int | None = None) -> int:
        value = self.take(name, int)
        return default if value is None else self._within(name, value, low, high)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.take(name, float)
        if value is None:
            return default
        if abs(value) > 1e300 or not math.isfinite(value):
            raise self.bad(name, "the number is out of every range")
        return float(self._within(name, value, low, high))

    def _within(self, name: str, value: Any, low: Any, high: Any) -> Any:
        if value < low or (high is not None and value > high):
            most = f" and at most {high}" if high is not None else ""
            raise self.bad(name, f"{shown(value)}: it must be at least {low}{most}")
        return value

    def choice(self, name: str, options: Sequence[str], default: str) -> str:
        value = self.text(name, default)
        if value not in options:
            raise self.bad(name, f"{shown(value)}: it must be one of {', '.join(options)}")
        return value

    def inner(self, name: str) -> "Fields | None":
        """The members of an object inside."""
        value = self.take(name, dict)
        return None if value is None else Fields(value, f"{self.where}{name}.")

    def refuse(self, name: str, why: str, *harmless: Any) -> None:
        """Raises Refused where the member is there with a value that would change something."""
        value = self.take(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in harmless):
            raise self.bad(name, f"not supported: {why}")

    def done(self, more: Collection[str] = ()) -> None:
        """Raises Refused for a member that nobody has taken."""
        if self._left:
            name = next(iter(self._left))
            close = nearest(name, {*self._known, *more})
            message = f"unknown parameter {self.where}{name}.{close}"
            raise bad(self._param or self.where + name, message, "unknown_parameter")
