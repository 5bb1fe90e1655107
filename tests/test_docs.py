"""What the documents show runs, and what they name exists."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx

from helpers import ROOT, rotated
from lmkit.config import ConfigError
from lmkit.config.checks import check_experiment
from lmkit.config.entry import GROUPS, all_keys_of, compose
from lmkit.config.experiment import Experiment
from lmkit.config.paths import options_of
from lmkit.launch.serving import render_serving
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


NOT_RUN = ("train.step=80",)  # the page shows the error of it
# a user's own, and what stands for them here
PRETENDED = {f"+experiment={name}": "+experiment=gpt_tiny" for name in ("mine", "NAME", "[llama3_8b,found]")}
PRETENDED |= {"model=palm_tiny": "model=gpt"}


def lmkit_commands(page: Path) -> list[list[str]]:
    """The words after `python -m` of each lmkit command that a page shows, without comments and what a shell reads."""
    text = page.read_text().replace("\\\n", " ")
    found = []
    for line in re.findall(r"python -m (lmkit\.[\w.]+ [^`\n]+)", text):
        words = shlex.split(line, comments=True)
        stop = [n for n, word in enumerate(words) if word in (">", "|", "&&", "&", "2>&1")]
        found.append(words[: min(stop, default=len(words))])
    return found


def experiment_words(words: list[str]) -> list[str]:
    """The overrides of a command: no options, of a sweep the first job, an experiment of lmkit's for a user's own."""
    if "--config-dir" in words:
        at = words.index("--config-dir")
        words = words[:at] + words[at + 2 :]
    if "--multirun" in words:
        words = [word.split(",")[0] for word in words]
    words = [PRETENDED.get(word, word) for word in words]
    words = [f"launch.{word}" if word.startswith(("target=", "verb=")) else word for word in words]
    return [w for w in words if "=" in w and not w.startswith(("--", "hydra.", "hydra/", "step=", "row=", "store="))]


@pytest.mark.parametrize(
    "page", rotated([str(path.relative_to(ROOT)) for path in DOCUMENTS], "README.md", "docs/launch.md")
)
def test_commands_pass_every_check(page: str) -> None:
    """Each command that a page shows composes, and what it trains, plans or launches is not refused."""
    commands = [words for words in lmkit_commands(ROOT / page) if not {*NOT_RUN, "...", "--help"} & set(words)]
    for verb, *rest in commands:
        words = experiment_words(rest)
        if "launch.verb=serve" in words:
            render_serving(compose(["run.name=x", *words]), words)
            continue
        if (
            verb in ("lmkit.generate", "lmkit.export", "lmkit.serve", "lmkit.plan.scaling")
            or not words
            or "--check" in rest
        ):
            compose(["run.name=x", *words] if verb != "lmkit.plan.scaling" else ["run.name=x"])
            continue
        named = any(word.startswith(("+experiment=", "run.name=")) for word in words)
        check_experiment(compose(words if named else ["run.name=x", *words]))
    if page == "README.md":
        assert len(commands) >= 15


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


# What makes the commands of the tutorial short. The words of the page come first, so these win.
SHORT_RUN = [
    "optim.warmup_steps=1", "train.batch_size=4", "train.eval_every_steps=0", "train.log_every_steps=1",
    "train.sample_tokens=0", "data.seq_len=32", "tracker=none",
]  # fmt: skip
SHORT_MODEL = ["model.num_layers=1", "model.embed_dim=48", "model.mlp_dim=64", "tokenizer.vocab_size=1024"]


def shell_commands(page: Path) -> list[list[str]]:
    """The Python commands that a page shows, in words: indented lines outside of fences, continuations joined."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^    (python .*)$", text, flags=re.MULTILINE)]


def shortened(words: list[str]) -> list[str]:
    """A command of the tutorial with a twentieth of its steps, a smaller model, and the page itself as its text."""
    if words[1:3] != ["-m", "lmkit.train"]:
        return words
    steps = [int(word.split("=")[1]) for word in words if word.startswith("train.steps=")]
    words = [*words, *SHORT_RUN, f"train.steps={max(steps, default=40) // 20}"]
    if "+experiment=gpt_small" in words:
        words += SHORT_MODEL
    return words if "data=text_files" in words else [*words, "data=text_files", "data.paths=[docs]"]


def run_tutorial(folder: Path, skip: tuple[str, ...] = ()) -> dict[str, str]:
    """Runs the commands of docs/tutorial.md, shortened, one after the other; what each printed."""
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "tutorial.md", folder / "docs")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths}
    env.pop("JAX_NUM_CPU_DEVICES", None)  # as a reader has it
    printed = {}
    for words in shell_commands(ROOT / "docs" / "tutorial.md"):
        command = " ".join(words)
        if not any(word in command for word in skip):
            words = [sys.executable, *shortened(words)[1:]]
            done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
            printed[command] = done.stdout
    return printed


def test_the_commands_of_the_tutorial_compose() -> None:
    commands = shell_commands(ROOT / "docs" / "tutorial.md")
    verbs = [words[2] for words in commands]
    assert verbs.count("lmkit.train") == 5
    assert {"lmkit", "lmkit.show", "lmkit.verify", "lmkit.plan", "lmkit.generate", "lmkit.export"} <= set(verbs)
    for words in commands:
        if words[2] in ("lmkit.train", "lmkit.verify", "lmkit.generate", "lmkit.export"):
            compose(words[3:])


def test_the_tutorial_begins_well(tmp_path: Path) -> None:
    """The tiny run on one device: train, resume. The rest takes minutes where nothing has been compiled before."""
    printed = run_tutorial(tmp_path, skip=("gpt_small", "runs/small", "runs/mine", "mesh.", "lmkit.plan"))
    assert len(printed) == 3
    assert "resumed at step 2" in list(printed.values())[-1]


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    """Each as it stands but for its size: in a folder with texts, experiments and a run of the reader's own."""
    run = tmp_path / "runs" / "gpt_small" / "2026-01-31_12-00-00"
    (tmp_path / "my" / "conf" / "experiment").mkdir(parents=True)
    shutil.copy(ROOT / "conf" / "experiment" / "gpt_tiny.yaml", tmp_path / "my" / "conf" / "experiment" / "mine.yaml")
    (tmp_path / "my" / "texts").mkdir()
    for number in range(30):
        words = " ".join(f"word{number * n % 997}" for n in range(400))
        (tmp_path / "my" / "texts" / f"{number}.txt").write_text(words)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "LMKIT_CACHE": str(tmp_path / "cache")}
    env.pop("JAX_NUM_CPU_DEVICES", None)
    commands = [words for words in lmkit_commands(ROOT / "README.md") if "runs/scaling_law/depth*" not in words]
    commands = [words for words in commands if words[0] != "lmkit.serve"]  # it ends by a signal: tests/serve
    commands.sort(key=lambda words: f"run.dir={run.relative_to(tmp_path)}" not in words)  # others read that run
    for verb, *words in commands:
        small = [*SHORT_RUN, "train.steps=2", "data.seq_len=32"] if verb in ("lmkit.train", "lmkit.prepare") else []
        small += SHORT_MODEL if small and "+experiment=gpt_small" in words else []
        small = [word for word in small if "train.steps" not in word or verb == "lmkit.train"]
        small = [] if {"--help", "--cfg"} & set(words) else small
        small += ["generate.max_new_tokens=4"] if verb == "lmkit.generate" else []
        done = subprocess.run(
            [sys.executable, "-m", verb, *words, *small], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{verb} {words}\n{done.stdout[-800:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow
def test_the_whole_tutorial_runs(tmp_path: Path) -> None:
    printed = run_tutorial(tmp_path)

    def of(word: str) -> list[str]:
        return [text for command, text in printed.items() if word in command]

    assert of("lmkit.verify")[0].strip().endswith("equal")
    assert "resumed at step 4" in of("run.cpu_devices=8")[0]
    assert "eval/bits_per_byte" in of("metrics.jsonl")[0]
    assert all(text.startswith("A mesh is") for text in of("lmkit.generate")), "the prompt, and what follows"
    assert json.loads((tmp_path / "runs" / "mine_hf" / "config.json").read_text())["model_type"] == "qwen3"
    (code,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
