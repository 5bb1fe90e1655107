"""Which package each metric comes from, and the checks that all of them share."""

import importlib
import importlib.util
from collections.abc import Sequence, Sized
from types import ModuleType

import numpy as np

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
    name = _package(kind)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"metrics of {kind} need a package: {error}; pip install 'lmkit[metrics]'") from error


def available(kind: str) -> bool:
    """Whether the package behind a kind of metric is installed."""
    return importlib.util.find_spec(_package(kind).partition(".")[0]) is not None


def _package(kind: str) -> str:
    if kind not in PACKAGES:
        raise ConfigError(
            f"no metric is called {kind!r}; there are {', '.join(PACKAGES)}.{nearest(str(kind), PACKAGES)}"
        )
    return PACKAGES[kind]


def check_texts(kind: str, references: Sequence[str], hypotheses: Sequence[str]) -> None:
    """Raises ConfigError unless both are lists of texts, one answer for each truth, and at least one."""
    for name, texts in (("references", references), ("answers", hypotheses)):
        if isinstance(texts, str) or not isinstance(texts, Sequence | np.ndarray):
            raise ConfigError(f"{kind}: {name} is a {type(texts).__name__}; give a list of texts")
        if wrong := [(n, text) for n, text in enumerate(texts) if not isinstance(text, str)]:
            raise ConfigError(f"{kind}: {name}[{wrong[0][0]}] is {wrong[0][1]!r:.40}; each must be a text")
    check_pairs(kind, references, hypotheses)


def check_pairs(kind: str, truth: Sized, answers: Sized) -> None:
    """Raises ConfigError unless there is one answer for each truth, and at least one."""
    if len(truth) != len(answers):
        raise ConfigError(f"{kind}: {len(truth)} references and {len(answers)} answers; give one answer for each")
    if not len(truth):
        raise ConfigError(f"{kind}: nothing to score; the split is empty")
