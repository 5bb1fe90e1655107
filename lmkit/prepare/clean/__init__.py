"""A corpus cleaned by datatrove: documents in, documents out, whatever is killed on the way.

Only `run` and what it imports need the extra; this module does not, so that a verb may import it.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

from lmkit.config.base import ConfigError
from lmkit.config.sections.clean import CleanConfig
from lmkit.config.sections.prepare import Executor, PrepareConfig
from lmkit.data.sources.text import TextSource

# (what is being done, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]


def clean(
    source: TextSource, settings: CleanConfig, how: PrepareConfig, out: Path, progress: Progress = lambda *_: None,
    earlier: Mapping[str, Path] | None = None,
) -> None:  # fmt: skip
    """Fills `out`: docs/NNNNN.jsonl, dropped/, quarantine.jsonl, report.html and, last of all, card.json.

    `earlier`: the folders of parts of a mixture that were cleaned before, by name. Of documents that are there, too,
    none is kept.

    Where `out` has a card there is nothing left to do; where an earlier call was killed, this one goes on; where
    another process is at work in it, this one waits. Raises ConfigError where the extra is missing, `out` was made from
    something else, or too many records are unreadable.
    """
    need(how.executor, "cleaning a corpus")
    if settings.languages:
        _need("py3langid", "prepare", "data.clean.languages")
    importlib.import_module("lmkit.prepare.clean.run").run(source, settings, how, out, progress, earlier)


def need(executor: Executor, what: str = "") -> None:
    """Raises ConfigError where the packages of an executor are missing."""
    _need("datatrove", "prepare", what or f"prepare.executor={executor.name}")
    if executor is Executor.ray:
        _need("ray", "ray", "prepare.executor=ray")


def _need(module: str, extra: str, what: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{what} needs {module}: pip install 'lmkit[{extra}]'")
