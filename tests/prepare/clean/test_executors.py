"""The same bytes from Ray, and from a real Slurm of two pretended nodes; workers that die are named."""

import random
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="LOUD: executors are not tested; pip install 'lmkit[prepare]'")

from lmkit.config import ConfigError
from lmkit.config.base import UserError
from lmkit.config.sections.clean import CleanConfig
from lmkit.config.sections.prepare import Executor, PrepareConfig
from lmkit.data.sources.listing import expand
from lmkit.data.sources.text import TEXT_SUFFIXES, TextSource
from lmkit.prepare.clean import clean, steps

SETTINGS = CleanConfig(normalise=True, exact=True, near=0.8)


@pytest.fixture
def source(tmp_path: Path) -> TextSource:
    """Twelve texts, the last three copies of the first three."""
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = [" ".join(f"word{random.Random(n).randrange(10**6)}{k}" for k in range(80)) for n in range(9)]
    for number, text in enumerate([*texts, *texts[:3]]):
        (folder / f"{number:02}.txt").write_text(text)
    return TextSource(expand(str(folder), TEXT_SUFFIXES), "text", 20)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def local(source: TextSource, out: Path) -> dict[str, bytes]:
    clean(source, SETTINGS, PrepareConfig(workers=1, tasks=4), out)
    found = contents(out)
    assert sum(name.startswith("docs/") for name in found) >= 3
    return found


@pytest.mark.slow
def test_ray_makes_the_same_bytes(source: TextSource, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="LOUD: the Ray executor is not tested; pip install 'lmkit[ray]'")
    how = PrepareConfig(executor=Executor.ray, workers=2, tasks=4, memory_gb=1)
    clean(source, SETTINGS, how, tmp_path / "ray")
    assert contents(tmp_path / "ray") == local(source, tmp_path / "local")


@pytest.mark.slow
def test_slurm_makes_the_same_bytes(source: TextSource, tmp_path: Path, slurm: None) -> None:
    how = PrepareConfig(executor=Executor.slurm, tasks=4, partition="cpu", memory_gb=1)
    clean(source, SETTINGS, how, tmp_path / "out")
    assert contents(tmp_path / "out") == local(source, tmp_path / "local")


def test_slurm_that_is_not_there_is_named(source: TextSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="prepare.executor=slurm: sbatch did not take the job"):
        clean(source, SETTINGS, PrepareConfig(executor=Executor.slurm, tasks=4), tmp_path / "out")


class Deadly(steps.Read):
    """Kills the worker that unpacks it."""

    def __reduce__(self) -> tuple:
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_killed_worker_ends_the_job_and_is_named(
    source: TextSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """datatrove's own pool waits for its result for ever."""
    monkeypatch.setattr("lmkit.prepare.clean.run.Read", Deadly)
    with pytest.raises(UserError, match=r"a worker of the stage 'filter' was killed.*set prepare.workers= below 2"):
        clean(source, SETTINGS, PrepareConfig(workers=2, tasks=4), tmp_path / "out")
    monkeypatch.undo()
    clean(source, SETTINGS, PrepareConfig(workers=2, tasks=4), tmp_path / "out")
    assert contents(tmp_path / "out") == local(source, tmp_path / "local")


def test_what_a_task_raises_comes_back(source: TextSource, tmp_path: Path) -> None:
    gone = TextSource([*source.files, source.files[0]._replace(url=f"file://{tmp_path}/gone.txt")], "text", 20)
    began = time.monotonic()
    for workers in (1, 2):
        with pytest.raises(ConfigError, match="cannot read file:///.*gone.txt"):
            clean(gone, CleanConfig(exact=True), PrepareConfig(workers=workers, tasks=4), tmp_path / "out")
    assert time.monotonic() - began < 60
