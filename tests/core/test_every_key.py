"""A walk over every key: changed, it changes the step, the initial state or the data; or it declares that it does not
change results; or it is refused.

Each task below has a tiny configuration of its own. Where a key is refused, that is what is asked for.
"""

import dataclasses
import hashlib
import json
import random
from enum import Enum
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from helpers import rotated
from lmkit.config import ConfigError
from lmkit.config.base import free_keys
from lmkit.config.checks import check_experiment
from lmkit.config.entry import all_keys_of, compose
from lmkit.config.experiment import Experiment, check_mesh
from lmkit.core.state import init_state, make_blueprint
from lmkit.core.step import make_train_step
from lmkit.core.task import prepare_task
from lmkit.objectives.build import build_objective
from lmkit.parallel.mesh import build_mesh

SMALL = ["model.num_layers=2", "model.num_heads=2", "model.embed_dim=16", "train.batch_size=4", "train.steps=8"]
SMALL += ["optim.warmup_steps=2", "tokenizer=bytes"]
TEXT = ["data=text_files", "data.paths=[{corpus}]", "data.seq_len=32", "data.holdout_every=4"]
RECORDS = ["data=records", "data.paths=[{records}]", "data.seq_len=32", "data.holdout_every=4"]
TASKS = {
    "causal_lm": ["model=gpt", *TEXT],
    "packed": ["model=gpt", *TEXT, "data.packing=best_fit"],
    "windowed": ["model=gpt", *TEXT, "model.sliding_window=8", "model.num_kv_heads=1", "model.rope_scaling=llama3"],
    "experts": ["model=gpt", *TEXT, "model.num_experts=4", "model.mlp_dim=16", "optim=muon"],
    "masked_lm": ["model=bert", "objective=masked_lm", *TEXT, "optim=lion"],
    "span_corruption": ["model=encdec", "objective=span_corruption", *TEXT, "model.position=relative", "optim=sgd"],
    "seq2seq": ["model=encdec", "objective=seq2seq", *RECORDS, "optim=schedule_free_adamw"],
    "classify": ["model=bert", "objective=classify", *RECORDS, "optim=adafactor"],
    "regress": ["model=bert", "objective=regress", *RECORDS, "data.target_key=number"],
    "chat": ["model=gpt", "objective=chat", *RECORDS],
    "images": [
        "model=vit", "objective=classify", "data=digits", "model.image_size=8", "model.patch_size=4",
        "model.num_channels=1", "model.num_classes=0", "tokenizer=bytes", "data.holdout_every=4",
    ],
}  # fmt: skip
# Keys whose effect lies outside of the step and of the data, and where.
ELSEWHERE = {
    "init_from": "the parameters that are there already (tests/weights)",
    "train.folds": "several runs (tests/core/test_tasks.py)",
    "model.max_seq_len": "with rotary positions: what generate and export call the longest text",
    "model.block": "code of a user's own (tests/test_docs.py)",
    "data.allow_roots": "which files records may open (tests/data/sources)",
    "data.resize": "images of another size than the model's (tests/data/batches)",
    "data.split": "data sets of Hugging Face (tests/data/sources/test_hf.py)",
    "data.source": "the group data",
    "data.fold": "set by train.folds",
    "tokenizer.kind": "the group tokenizer",
    "tokenizer.vocab_size": "trained vocabularies (tests/data/tokens); said where none is trained",
    "tokenizer.train_mb": "trained vocabularies (tests/data/tokens); said where none is trained",
    "tokenizer.special_tokens": "trained vocabularies (tests/data/tokens)",
    "model.num_classes": "0 takes the data's number, and another number is refused",
    "data.id_key": "names of documents: the split",
    "model.pooler": "a BERT without heads that read it; said",
    "model.lm_head": "a BERT whose objective does not read it; said",
    "model.next_sentence_head": "a BERT whose objective does not read it; said",
    "data.anneal_from_step": "a course of weights (tests/data/order/test_mixing.py)",
    "data.anneal_to_step": "a course of weights (tests/data/order/test_mixing.py)",
    "data.mixture": "several sources (tests/core/test_tasks.py)",
}
VALUES: dict[str, list[str]] = {
    "data.paths": ["[{other}]"],
    "data.heldout_paths": ["[{other_records}]"],
    "data.labels": ["[b, a]"],
    "data.class_weights": ["+{a: 3.0}"],
    "data.message_format": ["'[{role}] {content}'"],
    "data.text_key": ["text2"], "data.pair_key": ["text2"], "data.target_key": ["text2", "number2"],
    "data.label_key": ["label2"], "data.messages_key": ["messages2"], "data.weight_key": ["weight"],
    "data.clean.languages": ["[en]"], "data.clean.quality": ["[c4]"], "data.clean.pii": ["[email]"],
    "data.clean.decontaminate": ["[{corpus}]"],
    "optim.freeze": ["[embed]"], "optim.rates": ["+{embed: 0.5}"], "optim.decay": ["[matrix, vector]"],
    "tokenizer.mask_token": ["<x>"], "tokenizer.chat_template": ["'{{ messages[0].content }}'"],
    "lora.targets": ["['*']"], "lora.train": ["[embed]"],
}  # fmt: skip
SECTIONS = ("run", "train", "model", "data", "tokenizer", "objective", "optim", "lora")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, rng = tmp_path_factory.mktemp("walk"), random.Random(0)
    for name in ("corpus", "other"):
        (folder / name).mkdir()
        for number in range(24):
            text = " ".join(rng.choices([f"{name}{i}" for i in range(50)], k=60))
            row = {"text": text, "text2": text[::-1], "weight": 0.5}
            (folder / name / f"{number}.jsonl").write_text(json.dumps(row) + "\n")
        rows = [
            {
                "text": f"{name} {n} {rng.random()}", "text2": f"second {n}", "target": f"third {n}", "number": n / 7,
                "number2": -n / 3, "label": "ab"[n % 2], "label2": "ab"[n % 3 == 0],
                "messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": f"{name}"}],
                "messages2": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"{n} {n}"}],
            }
            for n in range(40)
        ]  # fmt: skip
        file = folder / ("records.jsonl" if name == "corpus" else "other_records.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "corpus": str(folder / "corpus"), "other": str(folder / "other"), "records": str(folder / "records.jsonl"),
        "other_records": str(folder / "other_records.jsonl"), "cache": str(folder / "cache"),
    }  # fmt: skip


def fill(words: list[str], places: dict[str, str]) -> list[str]:
    for name, place in places.items():
        words = [word.replace(f"{{{name}}}", place) for word in words]
    return words


def fingerprint(words: tuple[str, ...]) -> dict[str, str]:
    """What a configuration comes to: the programs of its step and of its initial state, and its data."""
    experiment = compose(list(words))
    check_experiment(experiment)
    check_mesh(experiment, 1)
    task = prepare_task(experiment, lambda *_: None)
    mesh = build_mesh(experiment.mesh, jax.devices()[:1])
    train, seed = experiment.train, experiment.run.seed
    blueprint = make_blueprint(task.model, experiment.optim, train.steps, mesh, experiment.lora)
    step = make_train_step(
        blueprint, build_objective(experiment.objective), accumulate=train.accumulate_steps, seed=seed
    )
    rows = np.arange(train.batch_size)
    batch = task.batches.train(1, train.batch_size, rows)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}
    with jax.set_mesh(mesh):
        programs = {
            "step": str(jax.make_jaxpr(step)(blueprint.shapes, shapes)),
            "init": str(jax.make_jaxpr(lambda: init_state(blueprint, seed))()),
        }
    data = hashlib.sha256(repr((task.facts, task.labels, task.weights)).encode())
    for part in task.weights:
        for arrays in (batch, task.batches.heldout(part, rows)):
            for name in sorted(arrays):
                data.update(np.ascontiguousarray(arrays[name]).tobytes())
    return programs | {"data": data.hexdigest()}


plain_fingerprint = cache(fingerprint)


def other_values(name: str, value: Any, places: dict[str, str]) -> list[str]:
    """Values of a key that differ from the one it has."""
    if name in VALUES:
        return fill(VALUES[name], places)
    if isinstance(value, bool):
        return [str(not value).lower()]
    if isinstance(value, Enum):
        return [one.name for one in type(value) if one is not value]
    if isinstance(value, int):
        return [str(n) for n in (2 * value, value + 1, 2, 4, 1) if n != value]
    if isinstance(value, float):
        return [str(x) for x in (value / 2, 2 * value, 0.5, 0.25, 1.5) if x != value]
    return ["something_else"]


def values_of(experiment: Experiment) -> dict[str, Any]:
    found = {}

    def walk(node: Any, prefix: str) -> None:
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if dataclasses.is_dataclass(value):
                walk(value, f"{prefix}{field.name}.")
            else:
                found[prefix + field.name] = value

    walk(experiment, "")
    return found


@pytest.mark.parametrize("section", rotated(SECTIONS, "objective"))
@pytest.mark.parametrize("task", rotated(TASKS, "causal_lm"))
def test_every_key_changes_something_or_is_refused(task: str, section: str, places: dict[str, str]) -> None:
    words = [*(SMALL if task != "images" else SMALL[:-1]), *TASKS[task]]
    words = fill(["run.name=x", "data.cache_dir={cache}", *words], places)
    experiment = compose(words)
    free = free_keys(Experiment) | free_keys(type(experiment.model), "model.")
    before, silent = plain_fingerprint(tuple(words)), []
    for name, value in values_of(experiment).items():
        if not name.startswith(f"{section}.") or name in free or name in ELSEWHERE:
            continue
        verdicts = []
        for other in other_values(name, value, places):
            word = f"+{name}={other[1:]}" if other.startswith("+") else f"{name}={other}"
            try:
                after = fingerprint((*words, word))
            except ConfigError as error:
                verdicts.append(f"refused: {error}")
                continue
            verdicts.append("changed" if after != before else f"{word} changes nothing")
            if after != before:
                break
        if not any(one == "changed" for one in verdicts) and not all(one.startswith("refused") for one in verdicts):
            silent.append(verdicts)
    assert not silent


def test_what_is_said_to_lie_elsewhere_exists() -> None:
    assert set(ELSEWHERE) | set(VALUES) <= {name for name, *_ in all_keys_of(Experiment)}
