"""The way in: `run_verb` for the command line, `compose` for notebooks, tools and tests."""

from lmkit.config.entry.compose import compose, register, to_experiment
from lmkit.config.entry.errors import explain
from lmkit.config.entry.keys import GROUPS, TOWERS, all_keys_of, help_text
from lmkit.config.entry.verb import run_verb

__all__ = [
    "GROUPS",
    "TOWERS",
    "all_keys_of",
    "compose",
    "explain",
    "help_text",
    "register",
    "run_verb",
    "to_experiment",
]
