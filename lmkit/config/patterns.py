"""Patterns on dotted paths: which parts of a model a key speaks of."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from lmkit.config.base import ConfigError


def covers(pattern: str, path: str) -> bool:
    """Whether a pattern (`*`, `?`, `[...]`, over dots too) matches a dotted path, or a part that holds it."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")


def matching(key: str, patterns: Iterable[str], paths: Iterable[str]) -> dict[str, str]:
    """The paths that are covered, each with the last pattern that covers it.

    Raises ConfigError for a pattern that covers none, naming the nearest paths. `key` is what the user typed it at.
    """
    paths, found = list(paths), {}
    for pattern in patterns:
        hits = [path for path in paths if covers(pattern, path)]
        if not hits:
            near = difflib.get_close_matches(pattern, paths, n=4, cutoff=0.0)
            raise ConfigError(f"{key}: {pattern!r} matches nothing; there are {', '.join(near)} (of {len(paths)})")
        found |= dict.fromkeys(hits, pattern)
    return found
