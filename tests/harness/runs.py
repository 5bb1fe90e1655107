"""Runs that were never trained, as far as evaluate reads them; and words of text to make data of."""

import json
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from lmkit.checkpoint import Checkpoints
from lmkit.config.entry import compose, run_verb
from lmkit.config.experiment import Experiment, to_plain
from lmkit.config.saved import TOKENIZER_FILE, write_model, write_tokenizer
from lmkit.config.sections.checkpoint import CheckpointConfig
from lmkit.core.state import init_state, make_blueprint
from lmkit.core.task import Task, prepare_task, settled
from lmkit.evaluate.__main__ import ABOUT, READS
from lmkit.parallel.mesh import build_mesh

SMALL = ["run.name=x", "tokenizer=bytes", "train.batch_size=8", "train.steps=8", "optim.warmup_steps=2"]
TEXT_MODEL = ["model.num_layers=2", "model.num_heads=4", "model.embed_dim=32", "model.init_std=0.3"]


def evaluate(*words: str) -> int:
    return run_verb("evaluate", "lmkit.evaluate.main:evaluate", ABOUT, list(words), reads=READS, many=True)


def write_records(file: Path, count: int = 60) -> Path:
    rng, words = random.Random(0), ["ape", "bear", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
    with file.open("w") as out:
        for _ in range(count):
            text = " ".join(rng.choices(words, k=5))
            row = {"text": text, "target": text.upper(), "number": rng.random(), "label": rng.choice("abc")}
            out.write(json.dumps(row) + "\n")
    return file


def make_run(folder: Path, words: list[str]) -> tuple[Experiment, Task, Any, Any]:
    """The experiment, its task, its blueprint and its state of step 0."""
    experiment = compose([*SMALL, *words])
    task = prepare_task(experiment, lambda *_: None)
    mesh = build_mesh(experiment.mesh, jax.devices()[:1])
    blueprint = make_blueprint(task.model, experiment.optim, 10, mesh)
    state = init_state(blueprint, 0)
    folder.mkdir(parents=True)
    write_model(folder, task.model)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(experiment), sort_keys=False))
    if task.tokenizer is not None:
        task.tokenizer.save(folder / TOKENIZER_FILE)
        write_tokenizer(folder, settled(experiment.tokenizer, task))
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig())
    checkpoints.save(10, state)
    checkpoints.close()
    return experiment, task, blueprint, state


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["results"]


def write_images(folder: Path, count: int = 48) -> Path:
    """A .jsonl of images of 8 x 8 with a line of text each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir()
    with (folder / "pairs.jsonl").open("w") as out:
        for number in range(count):
            pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            out.write(json.dumps({"text": f"picture {number}", "image": f"{number}.png"}) + "\n")
    return folder / "pairs.jsonl"
