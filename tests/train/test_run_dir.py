"""The run directory: what is written down of a run, who may read it, and whether it may go on."""

import dataclasses
import stat
from pathlib import Path

import pytest
import yaml

from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment
from lmkit.files import private_files, shared_files
from lmkit.train.run_dir import RunDir, environment


def experiment(folder: Path, url: str, *overrides: str) -> Experiment:
    words = ["data=text_files", f"data.paths=['{url}']", f"run.dir='{folder}'", *overrides]
    return compose(["+experiment=gpt_tiny", *words, 'launch.setup=["export HF_TOKEN=hunter2"]'])


def test_secrets_are_not_written_down_and_the_run_resumes(tmp_path: Path) -> None:
    url = "https://me:hunter2@host/a.txt?X-Amz-Date=1&X-Amz-Signature=hunter2"
    with RunDir(experiment(tmp_path / "run", url)) as run:
        run.begin(experiment(tmp_path / "run", url))
        run.write_json("receipt.json", {"git": {"diff": "+api_key = 'hunter2'"}, "data": [url]})
    for file in run.path.iterdir():
        assert "hunter2" not in file.read_text(), file
    saved = yaml.safe_load((run.path / "config.yaml").read_text())
    assert saved["data"]["paths"] == ["https://***@host/a.txt?***"]
    assert saved["tokenizer"]["end_token"] == Experiment().tokenizer.end_token
    for later in (url, url.replace("hunter2", "hunter3"), "https://***@host/a.txt?***"):
        with RunDir(experiment(tmp_path / "run", later)) as run:
            assert run.resumed
    with pytest.raises(ConfigError, match=r"of another experiment: data.paths \(\['https://\*\*\*@host/a"):
        RunDir(experiment(tmp_path / "run", url.replace("host", "other")))


def test_a_command_line_is_kept_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "lmkit.train", "data.paths=[https://me:hunter2@h/a]"])
    assert environment()["command"][-1] == "data.paths=[https://***@h/a]"


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [("077", 0o700, 0o600), ("27", 0o750, 0o640), ("002", 0o775, 0o664)]
)
def test_a_run_has_the_modes_of_its_umask_and_what_is_around_it_does_not(
    umask: str, folder: int, file: int, tmp_path: Path
) -> None:
    one = experiment(tmp_path / "runs" / "run", "a.txt", f"run.umask={umask}")
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
