"""The core does without the extra, and says what is missing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from lmkit.config import ConfigError
from lmkit.config.sections.clean import CleanConfig
from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.prepare import Executor, PrepareConfig
from lmkit.data.sources.text import TextSource
from lmkit.prepare.clean import clean


@pytest.mark.parametrize(
    ("missing", "executor", "said"),
    [
        ("datatrove", Executor.local, r"needs datatrove: pip install 'lmkit\[prepare\]'"),
        ("py3langid", Executor.local, r"needs py3langid: pip install 'lmkit\[prepare\]'"),
        ("ray", Executor.ray, r"needs ray: pip install 'lmkit\[ray\]'"),
    ],
)
def test_what_is_missing_is_named(
    missing: str, executor: Executor, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    settings = CleanConfig(languages=["en"])
    with pytest.raises(ConfigError, match=said):
        clean(TextSource([], "text", 20), settings, PrepareConfig(executor=executor), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_characters_are_refused() -> None:
    with pytest.raises(ConfigError, match="data.weight_key=loss with data.clean: .*set data.weight_key=''"):
        DataConfig(weight_key="loss", clean=CleanConfig(exact=True))


def test_importing_it_imports_no_engine() -> None:
    code = "import sys, lmkit.prepare.clean; print([m for m in ('datatrove', 'ray', 'jax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
