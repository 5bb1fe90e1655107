"""A run is continued by the same experiment, on the same data."""

from pathlib import Path
from typing import Any

import pytest

from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment
from lmkit.train.run_dir import RunDir

FACTS: dict[str, Any] = {"records": {"sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32, "labels": ["a", "b"]}}


def experiment(folder: Path, *words: str) -> Experiment:
    return compose(["+experiment=gpt_tiny", f"run.dir={folder}", *words])


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that has begun."""
    with RunDir(experiment(tmp_path)) as run:
        run.begin(experiment(tmp_path))
        run.write_json("receipt.json", {"data": FACTS})
    return tmp_path


@pytest.mark.parametrize("word", [
    "data.memory_mb=4096", "data.read_processes=2", "data.on_corrupt=skip", "data.max_bad_share=0.5",
    "prepare.workers=2", "prepare.executor=slurm", "prepare.sbatch={qos: long}", "mesh.fsdp=2", "mesh.dcn.data=2",
    "train.steps=9000", "train.sample_prompt=def", "model.remat=full", "objective.chunk_tokens=64", "run.name=other",
    "hosts.stall_factor=3", "generate.top_k=5",
])  # fmt: skip
def test_keys_that_change_no_result_may_differ(begun: Path, word: str) -> None:
    with RunDir(experiment(begun, f"+{word}" if "{" in word else word)) as run:
        assert run.resumed


@pytest.mark.parametrize("word", [
    "run.seed=1", "train.batch_size=24", "optim.learning_rate=1e-4", "model.num_layers=3", "data.seq_len=32",
    "model.dtype=bfloat16", "tokenizer.train_mb=9", "lora.rank=2 init_from=x",
])  # fmt: skip
def test_keys_that_change_results_may_not(begun: Path, word: str) -> None:
    name = word.split("=")[0]
    with (
        pytest.raises(ConfigError, match=f"is of another experiment: .*{name}"),
        RunDir(experiment(begun, *word.split())),
    ):
        pass


@pytest.mark.parametrize(("changed", "words"), [
    ({"sha256": "ef" * 32}, "records: sha256 (abababababab there, efefefefefef here)"),
    ({"tokenizer_sha256": "12" * 32}, "records: tokenizer_sha256 (cdcdcdcdcdcd there, 121212121212 here)"),
    ({"labels": ["z", "b"]}, "records: labels (['a', 'b'] there, ['z', 'b'] here)"),
])  # fmt: skip
def test_data_that_changed_are_named(begun: Path, changed: dict[str, Any], words: str) -> None:
    with RunDir(experiment(begun)) as run:
        run.check_data(FACTS)
        with pytest.raises(ConfigError) as caught:
            run.check_data({"records": FACTS["records"] | changed})
    assert words in str(caught.value)


def test_a_mixture_that_is_dealt_in_another_order_is_told(begun: Path) -> None:
    with RunDir(experiment(begun)) as run:
        run.check_data({"records": FACTS["records"] | {"mixture": {"format": 2}}})
        assert "another order" in run.notes[0]


def test_a_new_run_is_compared_with_nothing(tmp_path: Path) -> None:
    with RunDir(experiment(tmp_path / "new")) as run:
        run.check_data(FACTS)
