"""Eight fake CPU devices, quick compilations, a cache of them that workers share, warnings of ours as errors."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
CACHE = Path(tempfile.gettempdir()) / f"lmkit-tests-{os.getuid()}"
os.environ["LMKIT_CACHE"] = str(CACHE)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny programs run once or twice: two thirds of a compilation would make them faster. HLO is the same without it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

from lmkit.config.entry.process import release_memory

jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

pytest_plugins = ["timings"]
ROTATION = Path(__file__).with_name("rotation.txt")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")
    parser.addoption("--write-docs", action="store_true", help="put the figures of parity into docs/models.md")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rotated = {line for line in ROTATION.read_text().splitlines() if line and not line.startswith("#")}
    for item in items:
        if {item.nodeid, item.nodeid.split("[")[0]} & rotated:
            item.add_marker(pytest.mark.slow)
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


MOST_BYTES = 2 << 30  # of a worker


@pytest.fixture(autouse=True)
def _drop_programs() -> Iterator[None]:
    """Compiled programs are dropped where they have made the process large; the cache on disk has them."""
    yield
    statm = Path("/proc/self/statm")
    if statm.exists() and int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") > MOST_BYTES:
        jax.clear_caches()
        release_memory()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of 60 small text files with words to learn."""
    import random

    rng = random.Random(0)
    words = [f"word{i}" for i in range(200)]
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(60):
        text = " ".join(rng.choices(words, k=300))
        (folder / f"{number:02}.txt").write_text(text)
    return folder
