"""The run directory: what is written down of a run, who may read it, and whether it may go on."""

import dataclasses
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment
from lmkit.core.environment import environment
from lmkit.files import private_files, shared_files
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


@pytest.mark.parametrize(("name", "text"), [
    ("config.yaml", ""), ("config.yaml", "run: {name: ["), ("receipt.json", '{"data": {"rec'), ("receipt.json", "[]"),
])  # fmt: skip
def test_a_damaged_file_of_the_run_is_named(begun: Path, name: str, text: str) -> None:
    (begun / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"{name} (is no|holds)"), RunDir(experiment(begun)) as run:
        run.check_data(FACTS)


def test_a_mixture_that_is_dealt_in_another_order_is_told(begun: Path) -> None:
    with RunDir(experiment(begun)) as run:
        run.check_data({"records": FACTS["records"] | {"mixture": {"format": 2}}})
        assert "another order" in run.notes[0]


def test_a_new_run_is_compared_with_nothing(tmp_path: Path) -> None:
    with RunDir(experiment(tmp_path / "new")) as run:
        run.check_data(FACTS)


def with_url(folder: Path, url: str, *overrides: str) -> Experiment:
    words = ["data=text_files", f"data.paths=['{url}']", f"run.dir='{folder}'", *overrides]
    return compose(["+experiment=gpt_tiny", *words, 'launch.setup=["export HF_TOKEN=hunter2"]'])


def test_secrets_are_not_written_down_and_the_run_resumes(tmp_path: Path) -> None:
    url = "https://me:hunter2@host/a.txt?X-Amz-Date=1&X-Amz-Signature=hunter2"
    with RunDir(with_url(tmp_path / "run", url)) as run:
        run.begin(with_url(tmp_path / "run", url))
        run.write_json("receipt.json", {"git": {"diff": "+api_key = 'hunter2'"}, "data": [url]})
    for file in run.path.iterdir():
        assert "hunter2" not in file.read_text(), file
    saved = yaml.safe_load((run.path / "config.yaml").read_text())
    assert saved["data"]["paths"] == ["https://***@host/a.txt?***"]
    assert saved["tokenizer"]["end_token"] == Experiment().tokenizer.end_token
    for later in (url, url.replace("hunter2", "hunter3"), "https://***@host/a.txt?***"):
        with RunDir(with_url(tmp_path / "run", later)) as run:
            assert run.resumed
    with pytest.raises(ConfigError, match=r"of another experiment: data.paths \(\['https://\*\*\*@host/a"):
        RunDir(with_url(tmp_path / "run", url.replace("host", "other")))


def test_a_command_line_is_kept_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "lmkit.train", "data.paths=[https://me:hunter2@h/a]"])
    assert environment()["command"][-1] == "data.paths=[https://***@h/a]"


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [("077", 0o700, 0o600), ("27", 0o750, 0o640), ("002", 0o775, 0o664)]
)
def test_a_run_has_the_modes_of_its_umask_and_what_is_around_it_does_not(
    umask: str, folder: int, file: int, tmp_path: Path
) -> None:
    one = with_url(tmp_path / "runs" / "run", "a.txt", f"run.umask={umask}")
    with private_files(0o022), private_files(int(one.run.umask, 8)):
        with RunDir(one) as run:
            run.begin(one)
        with shared_files():
            (tmp_path / "cache").mkdir()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert (modes["run"], modes["config.yaml"]) == (folder, file)
    assert {modes["runs"], modes["cache"]} == {0o755}


@pytest.mark.parametrize("umask", ["8", "u=rwx", "", "0o77", "00777"])
def test_a_umask_is_octal_digits(umask: str) -> None:
    with pytest.raises(ConfigError, match="run.umask=.*three octal digits, such as 077"):
        dataclasses.replace(Experiment().run, umask=umask)
