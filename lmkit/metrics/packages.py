"""Which package each metric comes from, and the checks that all of them share."""

import importlib
import importlib.util
from collections.abc import Sized
from types import ModuleType

from lmkit.config.base import ConfigError, nearest

PACKAGES = {
    "classification": "sklearn.metrics",
    "regression": "sklearn.metrics",
    "translation": "sacrebleu.metrics",
    "speech": "jiwer",
    "perplexity": "math",
}


def require(kind: str) -> ModuleType:
    """The package behind a kind of metric; call it early. Raises ConfigError where it is not installed."""
    if kind not in PACKAGES:
        raise ConfigError(f"no metric is called {kind!r}; there are {', '.join(PACKAGES)}.{nearest(kind, PACKAGES)}")
    try:
        return importlib.import_module(PACKAGES[kind])
    except ImportError as error:
        raise ConfigError(f"metrics of {kind} need a package: {error}; pip install 'lmkit[metrics]'") from error


def available(kind: str) -> bool:
    """Whether the package behind a kind of metric is installed."""
    return importlib.util.find_spec(PACKAGES[kind].partition(".")[0]) is not None


def check_pairs(kind: str, truth: Sized, answers: Sized) -> None:
    """Raises ConfigError unless there is one answer for each truth, and at least one."""
    if len(truth) != len(answers):
        raise ConfigError(f"{kind}: {len(truth)} references and {len(answers)} answers; give one answer for each")
    if not len(truth):
        raise ConfigError(f"{kind}: nothing to score; the split is empty")
