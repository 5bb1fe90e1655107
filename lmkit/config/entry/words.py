"""The words of a command line. The value of a text key is taken as it stands, not as Hydra's grammar would read it.

Left to Hydra are values in quotes of their own (run.name='a b'), and in a sweep (--multirun) values with a comma.
`${...}` stays an interpolation, but in generate.prompt.
"""

import re
from collections.abc import Iterable

from lmkit.config.entry.keys import all_keys_of
from lmkit.config.experiment import Experiment

_VERBATIM = ("generate.prompt",)  # quotes and ${ are part of it, too
_INTERPOLATION, _ESCAPED = re.compile(r"(\\*)\$\{"), r"\1\1\\${"
_OPEN, _CLOSE, _QUOTES = "([{", ")]}", "\"'"


def quoted_words(words: Iterable[str], sweep: bool = False) -> list[str]:
    """The words with the values of text keys, and of lists of text, in quotes that Hydra's grammar understands."""
    kinds = {name: kind for name, kind, *_ in all_keys_of(Experiment)}
    return [_quoted_word(word, kinds, sweep) for word in words]


def _quoted_word(word: str, kinds: dict[str, str], sweep: bool) -> str:
    name, equals, value = word.partition("=")
    key = name.lstrip("+")
    kind = kinds.get(key)
    if not equals or kind not in ("str", "list[str]"):
        return word
    if key in _VERBATIM:
        return f"{name}={_quote(_INTERPOLATION.sub(_ESCAPED, value))}"
    if sweep and len(_split(value)) > 1:
        return word
    if kind == "str":
        return word if _in_quotes(value) else f"{name}={_quote(value)}"
    whole = value.startswith("[") and value.endswith("]")
    if value and not whole and value[0] + value[-1] not in ('""', "''"):
        return f"{name}=[{_quote(value)}]"  # one
    elements = [one.strip() for one in _split(value[1:-1])] if whole else [""]
    if "" in elements:  # an empty list, or a mistake that Hydra names
        return word
    return f"{name}=[{','.join(one if _in_quotes(one) else _quote(one) for one in elements)}]"


def _quote(text: str) -> str:
    """Text as a quoted value of Hydra: a backslash is one, but before a quote."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    trailing = escaped[len(escaped.rstrip("\\")) :]
    return f'"{escaped}{trailing}"'


def _in_quotes(value: str) -> bool:
    """Whether a value is one quoted text as a whole."""
    if len(value) < 2 or value[0] not in _QUOTES or value[-1] != value[0]:
        return False
    return re.search(rf"(?<!\\)(\\\\)*{value[0]}", value[1:-1]) is None


def _split(text: str) -> list[str]:
    """At the commas outside of quotes and brackets."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES and not parts[-1].strip():  # an apostrophe inside a word opens nothing
            quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        if char == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts
