"""A run's own task: the figures of training's evaluation, on any mesh, with intervals; one line for mistakes."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from harness.runs import TEXT_MODEL, evaluate, make_run, results, write_images, write_records

from helpers import rotated
from lmkit import metrics
from lmkit.core.evaluation import evaluate as evaluate_step
from lmkit.core.step import make_eval_step
from lmkit.data.loader import heldout_batches
from lmkit.evaluate.examples import make_step, score_examples
from lmkit.evaluate.figures import precision_recall_f1
from lmkit.interop import save_folder
from lmkit.objectives.build import build_objective

RECORDS = ["data=records", "data.seq_len=32", "data.holdout_every=4"]
KINDS = {
    "causal_lm": ["model=gpt", *TEXT_MODEL, "data=text_files", "data.paths=[{records}]", "data.seq_len=32",
                  "data.holdout_every=4"],
    "masked_lm": ["model=bert", "objective=masked_lm", *TEXT_MODEL, "data=text_files", "data.paths=[{records}]",
                  "data.seq_len=32", "data.holdout_every=4"],
    "seq2seq": ["model=encdec", "objective=seq2seq", *TEXT_MODEL, *RECORDS, "data.paths=[{records}]"],
    "classify": ["model=bert", "objective=classify", *TEXT_MODEL, *RECORDS, "data.paths=[{records}]"],
    "regress": ["model=bert", "objective=regress", *TEXT_MODEL, *RECORDS, "data.paths=[{records}]",
                "data.target_key=number"],
}  # fmt: skip
SAME = ("loss", "accuracy", "bits_per_byte", "perplexity", "precision", "recall", "f1", "macro_f1", "mse", "mae", "r2")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("data") / "records.jsonl")


@pytest.mark.parametrize("kind", rotated(KINDS, "causal_lm", "classify"))
def test_the_figures_are_those_of_training(kind: str, records: Path, tmp_path: Path) -> None:
    words = [word.format(records=records) for word in KINDS[kind]]
    experiment, task, blueprint, state = make_run(tmp_path / "run", words)
    step = jax.jit(make_eval_step(blueprint, build_objective(experiment.objective)))
    batches = heldout_batches(task.batches, list(task.weights), batch_size=8, limit=0, mesh=blueprint.mesh)
    with jax.set_mesh(blueprint.mesh):
        means, _ = evaluate_step(step, state, batches, task)
    out = tmp_path / "out"
    assert evaluate(f"init_from={tmp_path / 'run'}", f"evaluate.out={out}", "evaluate.resamples=50") == 0
    found = results(out)["heldout"]
    compared = [name for name in SAME if f"eval/{name}" in means and f"{name},none" in found]
    assert len(compared) >= 2
    for name in compared:
        assert found[f"{name},none"] == pytest.approx(means[f"eval/{name}"], rel=2e-5), name
        low, high = found[f"{name}_interval,none"]
        assert low <= found[f"{name},none"] <= high
    if kind == "seq2seq":
        assert {"bleu,none", "chrf,none"} <= set(found)
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["examples"] == ("documents" if kind in ("causal_lm", "masked_lm") else "records")


@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm"])
def test_sums_are_those_of_the_document_that_a_token_stands_in(kind: str, records: Path, tmp_path: Path) -> None:
    """Each token scored by itself, row after row, and put to its document by counting end tokens."""
    words = [word.format(records=records) for word in KINDS[kind]]
    _, task, blueprint, state = make_run(tmp_path / "run", words)
    step = make_step(task.kind, blueprint.merge)
    sizes: dict[str, Any] = {"batch_size": 8, "limit": 0}
    found = score_examples(task, step, state["params"], blueprint.mesh, **sizes)
    batches, length, rows = task.batches, 32, []
    (store,) = batches.stores.values()  # type: ignore[attr-defined]
    ends = store.document_ends(batches.evaluated)
    expected = np.zeros((len(ends), 2))
    for _, batch in heldout_batches(batches, list(task.weights), mesh=blueprint.mesh, **sizes):
        nll = np.asarray(step(state["params"], batch)["nll"])
        weights, places = np.asarray(batch["weights"]), batch.get("masked_positions")
        for row in range(8):
            for column in np.flatnonzero(weights[row]):
                at = len(rows) * length + (int(places[row, column]) if places is not None else column + 1)
                document = next(number for number, end in enumerate(ends) if at <= end)
                expected[document] += (nll[row, column] * weights[row, column], weights[row, column])
            rows.append(row)
    expected = expected[expected[:, 1] > 0]
    assert found.what == "documents"
    assert np.allclose(found.columns["nll"], expected[:, 0], rtol=1e-6)
    assert np.array_equal(found.columns["weight"], expected[:, 1])


def test_a_mesh_gives_the_same_figures(records: Path, tmp_path: Path) -> None:
    words = [word.format(records=records) for word in KINDS["causal_lm"]]
    make_run(tmp_path / "run", [*words, "model.vocab_size=264"])
    found = []
    for number, mesh in enumerate(([], ["mesh.data=2", "mesh.tensor=2", "mesh.context=2"])):
        out = tmp_path / f"out{number}"
        assert evaluate(f"init_from={tmp_path / 'run'}", f"evaluate.out={out}", *mesh) == 0
        found.append(results(out)["heldout"])
    assert found[0]["loss,none"] == pytest.approx(found[1]["loss,none"], rel=1e-5)


def test_the_training_split_and_other_data(records: Path, tmp_path: Path) -> None:
    """More documents than are held out; and data that are said here take the place of the run's."""
    make_run(tmp_path / "run", [word.format(records=records) for word in KINDS["causal_lm"]])
    other = write_records(tmp_path / "other.jsonl", 20)
    for number, words in enumerate(([], ["evaluate.split=train"], ["data=text_files", f"data.paths=[{other}]",
                                                                  "data.seq_len=32"])):  # fmt: skip
        words = [*words, f"evaluate.out={tmp_path / str(number)}", "evaluate.resamples=0"]
        assert evaluate(f"init_from={tmp_path / 'run'}", *words) == 0
    held, train, given = (results(tmp_path / str(n)) for n in range(3))
    assert held["heldout"]["sample_len"] + train["train"]["sample_len"] == 60
    assert 0 < given["heldout"]["sample_len"] < 20
    assert np.isnan(held["heldout"]["loss_stderr,none"])


def test_retrieval_is_over_all_that_is_held_out(tmp_path: Path) -> None:
    pairs = write_images(tmp_path / "images")
    towers = [f"model.{tower}.{key}" for tower in ("text", "vision")
              for key in ("num_layers=1", "num_heads=2", "embed_dim=16")]  # fmt: skip
    make_run(tmp_path / "run", [
        "model=clip_vit_b32", "objective=contrastive", "data=records", f"data.paths=[{pairs}]", "data.seq_len=16",
        "data.holdout_every=2", "model.projection_dim=16", "model.vision.image_size=8", "model.vision.patch_size=4",
        "model.vision.num_channels=1", "model.text.vocab_size=257", *towers,
    ])  # fmt: skip
    out = tmp_path / "out"
    assert evaluate(f"init_from={tmp_path / 'run'}", f"evaluate.out={out}", "evaluate.resamples=20") == 0
    found = results(out)["heldout"]
    assert found["text_recall@1,none"] <= found["text_recall@5,none"] <= found["text_recall@10,none"] < 1
    assert found["image_recall@10,none"] > 0


@pytest.mark.parametrize(("words", "parts"), [
    (["init_from={run}", "evaluate.split=test"], ["evaluate.split", "test"]),
    (["init_from={run}", "evaluate.compare=[a]"], ["compare=['a']", "two models"]),
    (["init_from={run}", "evaluate.compare=[a, b]"], ["evaluate.compare", "init_from", "one of them"]),
    (["init_from={run}", "evaluate.chat=true"], ["evaluate.chat", "evaluate.tasks"]),
    (["init_from={run}", "data.source=text_files", "data.paths=[{empty}]"], ["empty.txt"]),
    (["init_from={run}", "evaluate.tsks=[a]"], ["evaluate.tsks", "evaluate.tasks"]),
    (["init_from={run}", "evaluate.out=/proc/x"], ["/proc/x"]),
])  # fmt: skip
def test_mistakes_get_one_line(
    records: Path, tmp_path: Path, words: list[str], parts: list[str], capsys: pytest.CaptureFixture
) -> None:
    make_run(tmp_path / "run", [word.format(records=records) for word in KINDS["causal_lm"]])
    (tmp_path / "empty.txt").write_text("")
    assert evaluate(*(word.format(run=tmp_path / "run", empty=tmp_path / "empty.txt") for word in words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lmkit.evaluate: ")
    for part in parts:
        assert part in line, line


def test_a_folder_takes_its_tokenizer_or_gets_one_line(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The figures of the run that it was written from; without tokenizer.json, or without data, one line."""
    words = [word.format(records=records) for word in KINDS["causal_lm"]]
    _, task, _, state = make_run(tmp_path / "run", [*words, "tokenizer=bpe", "tokenizer.vocab_size=280"])
    save_folder(tmp_path / "hf", task.model, state["params"], tokenizer=tmp_path / "run" / "tokenizer.json")
    file = tmp_path / "hf" / "tokenizer.json"
    inner, end = tokenizers.Tokenizer.from_file(str(file)), "<|endoftext|>"  # that puts its own token before a text
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, inner.token_to_id(end))]
    )
    inner.save(str(file))
    save_folder(tmp_path / "bare", task.model, state["params"])
    data = ["data=text_files", f"data.paths=[{records}]", "data.seq_len=32", "data.holdout_every=4"]
    found = []
    for number, given in enumerate(([f"init_from={tmp_path / 'run'}"], [f"init_from={tmp_path / 'hf'}", *data])):
        assert evaluate(*given, f"evaluate.out={tmp_path / str(number)}", "evaluate.resamples=0") == 0
        found.append(results(tmp_path / str(number))["heldout"])
    assert found[1]["loss,none"] == pytest.approx(found[0]["loss,none"], rel=1e-6)
    capsys.readouterr()
    for given, part in (([f"init_from={tmp_path / 'bare'}", *data], "no tokenizer.json"),
                        ([f"init_from={tmp_path / 'hf'}"], "no run with data of its own")):  # fmt: skip
        assert evaluate(*given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert part in line


def test_f1_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 3, 5):
        labels, predicted = rng.integers(0, classes, (2, 40))
        counts = (np.bincount(x, minlength=classes).astype(float)
                  for x in (labels[labels == predicted], labels, predicted))  # fmt: skip
        expected = metrics.classification(labels, predicted, [str(n) for n in range(classes)])
        for name, value in precision_recall_f1(*counts).items():
            assert value == pytest.approx(expected[name])
