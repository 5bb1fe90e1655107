"""What the documents show runs, and what they name exists."""

import re

import pytest

from helpers import ROOT
from lmkit.config.entry import GROUPS, all_keys_of, compose
from lmkit.config.experiment import Experiment
from lmkit.config.paths import options_of

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run(code: str) -> None:
    exec(compile(code, "snippet", "exec"), {})


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
        if section in sections and not key.endswith("json") and not (ROOT / "lmkit" / section).is_dir():
            assert f"{section}.{key}" in keys or any(k.startswith(f"{section}.{key}.") for k in keys), (
                f"{section}.{key}"
            )


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
