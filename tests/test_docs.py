"""What the documents show runs, and what they name exists."""

import json
import os
import re
import subprocess
import sys

import pytest
from flax import nnx

from helpers import ROOT
from lmkit.config import ConfigError
from lmkit.config.entry import GROUPS, all_keys_of, compose
from lmkit.config.experiment import Experiment
from lmkit.config.paths import options_of
from lmkit.models import GPT, GPTConfig

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SNIPPETS = [
    pytest.param(code, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run(code: str) -> None:
    names: dict = {}
    exec(compile(code, "snippet", "exec"), names)
    assert set(names) - {"__builtins__"}, "it defines nothing"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_keys_that_are_named_exist(path) -> None:
    keys = {name for name, *_ in all_keys_of(Experiment)}
    sections = {name.split(".")[0] for name in keys if "." in name}
    for section, key in re.findall(r"`(\w+)\.([\w.]+)(?:=[^`]*)?`", path.read_text()):
        if section in sections and not key.endswith(("json", "jsonl", "yaml")) and not is_code(section, key):
            assert f"{section}.{key}" in keys or any(k.startswith(f"{section}.{key}.") for k in keys), (
                f"{section}.{key}"
            )


def is_code(section: str, key: str) -> bool:
    """Whether it names a module of lmkit, or something in one, rather than a key."""
    folder = ROOT / "lmkit" / section
    return folder.is_dir() and (folder / f"{key.split('.')[0]}.py").is_file()


def readme_commands() -> list[str]:
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = [line.split("#")[0].strip() for line in lines if line.startswith("    python -m lmkit.train ")]
    assert len(commands) >= 8
    return commands


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_compose(command: str) -> None:
    words = [word.strip("'") for word in command.split()[3:]]
    if any(word.startswith("--") for word in words):
        words = [
            w
            for w in words
            if "," not in w and w not in ("--multirun", "--help", "--cfg", "job", "--config-dir", "my/conf")
        ]
    if "+experiment=mine" in words or not words:
        return
    assert compose(words).run.name in command


def test_every_group_and_experiment_is_named() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in options_of("experiment"))
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert all(group in changelog for group in GROUPS)


def test_add_a_model_works_as_written(tmp_path, corpus) -> None:
    """The block and the preset of docs/add_a_model.md, from a folder of a user's own, train on eight devices."""
    text = (ROOT / "docs" / "add_a_model.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (preset,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (command,) = re.findall(r"    (python -m lmkit\.train .*model=palm_tiny.*)", text)
    (tmp_path / "palm.py").write_text(block)
    (tmp_path / "my" / "conf" / "model").mkdir(parents=True)
    (tmp_path / "my" / "conf" / "model" / "palm_tiny.yaml").write_text(preset)
    words = [sys.executable, *command.split()[1:], "train.steps=6", "optim.warmup_steps=2", "data=text_files"]
    words += [f"data.paths=[{corpus}]", "train.eval_every_steps=0", "run.dir=run", "tracker=none"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [
        json.loads(line).get("train/loss") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0]


def test_a_block_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="model.block=nowhere:Block: No module named 'nowhere'"):
        GPT(GPTConfig(vocab_size=9, block="nowhere:Block"), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="module:Class"):
        GPT(GPTConfig(vocab_size=9, block="lmkit.nn.block:Blok"), rngs=nnx.Rngs(0))
