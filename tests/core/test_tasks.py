"""Every objective from its data to a finished run, on one device and on eight; early stopping, folds, mistakes."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from lmkit.config import ConfigError
from lmkit.config.checks import check_experiment
from lmkit.config.entry import compose, run_verb
from lmkit.config.sections.checkpoint import Best, CheckpointConfig
from lmkit.config.sections.data import DataConfig
from lmkit.core.state import init_state, make_blueprint
from lmkit.core.step import make_train_step
from lmkit.core.task import bits_per_byte, fit_model, prepare_task, without_idle_heads
from lmkit.data.loader import TrainBatches, batch_shapes
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.objectives import build_objective
from lmkit.parallel.mesh import build_mesh
from lmkit.tracker import read_rows
from lmkit.train.best import BestSoFar
from lmkit.train.folds import spread
from lmkit.train.run_dir import _newer_key

COMMON = [
    "tokenizer=bytes",
    "model.num_layers=1",
    "model.num_heads=4",
    "model.embed_dim=32",
    "train.steps=30",
    "train.batch_size=8",
    "train.eval_every_steps=15",
    "train.log_every_steps=1",
    "optim.warmup_steps=2",
    "optim.learning_rate=0.01",
    "tracker=none",
    "data.seq_len=32",
    "data.holdout_every=4",
    "train.sample_tokens=0",
]
SMALL_IMAGE = ["model.image_size=8", "model.patch_size=2", "model.num_channels=1", "model.num_classes=0"]


def records(folder: Path, rows: list[dict]) -> str:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.paths=[{path}]"


def sounds(folder: Path) -> list[dict]:
    import soundfile

    for n in range(16):
        soundfile.write(folder / f"{n}.wav", 0.1 * np.sin(np.arange(4000) * 0.05 * (n % 4 + 1)), 16000)
    return [{"audio": f"{n}.wav", "target": "abcd"[n % 4]} for n in range(16)]


def pictures(folder: Path) -> list[dict]:
    from PIL import Image

    for n in range(16):
        Image.fromarray(np.full((8, 8), n * 15, np.uint8)).save(folder / f"{n}.png")
    return [{"image": f"{n}.png", "text": "dark" if n < 8 else "light", "target": n / 16} for n in range(16)]


def overrides(name: str, folder: Path, corpus: Path) -> list[str]:
    """What makes a tiny run of an objective."""
    text, words = ["data=text_files", f"data.paths=[{corpus}]"], ["red", "green", "blue"]
    mails = [{"text": f"{words[n % 3]} {n}", "label": words[n % 3], "target": n % 3 + 0.5} for n in range(64)]
    bert = ["model=bert", "model.vocab_size=264", "model.lm_head=false", "model.max_seq_len=64"]
    encdec = ["model=encdec", "model.vocab_size=304", "model.norm_order=pre"]
    made = {
        "masked_lm": lambda: [*text, "model=bert", "model.vocab_size=264", "model.max_seq_len=64"],
        "next_sentence": lambda: [*overrides("masked_lm", folder, corpus), "objective.next_sentence=true",
                                  "model.next_sentence_head=true", "objective.mask_words=true"],
        "span_corruption": lambda: [*text, *encdec, ],
        "classify": lambda: ["data=records", records(folder, mails), *bert, "data.balance_classes=true"],
        "classify_tokens": lambda: [
            "data=records", *bert, "model.classify_tokens=true",
            records(folder, [{"text": [words[n % 3], "x"], "label": ["colour", "no"], "n": n} for n in range(64)]),
        ],
        "regress": lambda: ["data=records", records(folder, mails), *bert],
        "seq2seq": lambda: ["data=records", *encdec, "data.target_len=16",
                            records(folder, [{"text": row["text"], "target": row["label"]} for row in mails])],
        "speech": lambda: ["data=records", *encdec, "model.num_mels=20", "data.target_len=8",
                           records(folder, sounds(folder))],
        "chat": lambda: ["data=records", "model=gpt", "model.vocab_size=264", records(folder, [
            {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
            for row in mails
        ])],
        "images": lambda: ["data=digits", "model=vit", *SMALL_IMAGE, "model.init_std=0", "data.augment.crop_pixels=1"],
        "mixup": lambda: [*overrides("images", folder, corpus), "data.augment.mixup=0.4"],
        "contrastive": lambda: [
            "data=records", records(folder, pictures(folder)), "+experiment=gpt_tiny", "model=clip_tiny",
        ],
        "brightness": lambda: ["data=records", records(folder, pictures(folder)), "model=vit", *SMALL_IMAGE],
    }  # fmt: skip
    return made[name]()


KIND_OF = {"next_sentence": "masked_lm", "speech": "seq2seq", "images": "classify", "mixup": "classify",
           "brightness": "regress"}  # fmt: skip
NAMES = ["masked_lm", "next_sentence", "span_corruption", "classify", "classify_tokens", "regress", "seq2seq", "speech",
         "chat", "images", "mixup", "brightness"]  # fmt: skip


QUICK = ("classify", "seq2seq", "chat")


def words_of(name: str, folder: Path, corpus: Path, *more: str) -> list[str]:
    kind, own = KIND_OF.get(name, name), overrides(name, folder, corpus)
    common = [word for word in COMMON if "model=vit" not in own or not word.startswith("data.seq_len=")]
    return [*common, f"run.name={name}", f"objective={kind}", *own, *more]


def train(*words: str) -> int:
    return run_verb("train", "lmkit.train.main:train", "about", list(words))


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES
])  # fmt: skip
def test_a_whole_run_learns(name: str, tmp_path: Path, corpus: Path) -> None:
    run = tmp_path / "run"
    data_folder = tmp_path / "data"
    data_folder.mkdir()
    assert train(*words_of(name, data_folder, corpus, f"run.dir={run}", "mesh.data=2", "mesh.fsdp=4")) == 0
    losses = [row["train/loss"] for row in read_rows(run / "metrics.jsonl") if "train/loss" in row]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert np.isfinite(summary["eval/loss"])
    expected = {"classify": "eval/f1", "classify_tokens": "eval/f1", "regress": "eval/mse", "seq2seq": "eval/bleu",
                "speech": "eval/wer", "images": "eval/confusion", "masked_lm": "eval/perplexity"}  # fmt: skip
    if name == "images":
        matrix = np.array(json.loads((run / "confusion.json").read_text())["confusion"])
        assert matrix.shape == (10, 10)
        assert np.trace(matrix) / matrix.sum() == pytest.approx(summary["eval/accuracy"])
    elif name in expected:
        assert expected[name] in summary
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("name", [
    "mixup",
    *(pytest.param(name, marks=pytest.mark.slow)
      for name in ("next_sentence", "seq2seq", "masked_lm", "span_corruption", "classify_tokens")),
])  # fmt: skip
def test_sharded_equals_unsharded(name: str, tmp_path: Path, corpus: Path) -> None:
    losses = []
    for axes, devices in ((["mesh.data=1"], 1), (["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"], 8)):
        experiment = compose(words_of(name, tmp_path, corpus, *axes, "model.dtype=float32"))
        task = prepare_task(experiment, lambda *_: None)
        mesh = build_mesh(experiment.mesh, jax.devices()[:devices])
        blueprint = make_blueprint(task.model, experiment.optim, 10, mesh)
        state = init_state(blueprint, 0)
        step = make_train_step(blueprint, build_objective(experiment.objective), accumulate=2, seed=0)
        batches = TrainBatches(task.batches, experiment.data, first_step=0, steps=3, batch_size=8, mesh=mesh)
        seen = []
        with jax.set_mesh(mesh):
            jitted = jax.jit(step, donate_argnums=0, out_shardings=(blueprint.shardings, None))
            jitted = jitted.lower(blueprint.shapes, batch_shapes(task.batches, 8, mesh)).compile()
            for batch in batches:
                state, metrics = jitted(state, batch)
                seen.append(float(metrics["loss"]))
        losses.append(seen)
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)  # float32, a few steps


@pytest.mark.parametrize("name", ["masked_lm", pytest.param("mixup", marks=pytest.mark.slow)])
def test_resumed_equals_uninterrupted(name: str, tmp_path: Path, corpus: Path) -> None:
    words = words_of(name, tmp_path, corpus, "mesh.data=8", "model.dropout=0.1", "checkpoint.save_every_steps=10")
    assert train(*words, f"run.dir={tmp_path}/whole", "train.steps=20") == 0
    assert train(*words, f"run.dir={tmp_path}/parts", "train.steps=10") == 0
    assert train(*words, f"run.dir={tmp_path}/parts", "train.steps=20") == 0
    rows = [
        {row["step"]: row["train/loss"] for row in read_rows(tmp_path / run / "metrics.jsonl") if "train/loss" in row}
        for run in ("whole", "parts")
    ]
    schedule_differs = range(3, 11)  # the first part knew of 10 steps only
    assert {s: v for s, v in rows[0].items() if s < 3} == {s: v for s, v in rows[1].items() if s < 3}
    assert set(rows[0]) == set(rows[1]) == set(range(1, 21))
    assert schedule_differs


def test_early_stopping_and_the_best(tmp_path: Path, corpus: Path) -> None:
    """With a rate of nearly zero nothing gets better: the run ends, and says where the best was."""
    words = words_of("images", tmp_path, corpus, "train.steps=60", "train.eval_every_steps=5", "train.patience=2",
                     "optim.learning_rate=0", "checkpoint.best_metric=eval/accuracy",
                     "checkpoint.best=highest")  # fmt: skip
    assert train(*words, f"run.dir={tmp_path}/run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 15
    assert summary["best/step"] == 5
    assert summary["best/eval/accuracy"] == summary["eval/accuracy"]
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()}
    assert 15 in kept
    assert train(*words, f"run.dir={tmp_path}/run") == 0, "resumed, it knows that it has waited long enough"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 15


def test_the_best_so_far_is_read_again(tmp_path: Path) -> None:
    rows = [(1, 0.5), (2, 0.7), (3, None), (4, 0.6), (5, 0.65)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "eval/f1": v}) + "\n" for s, v in rows))
    best = BestSoFar(CheckpointConfig(best_metric="eval/f1", best=Best.highest), 3, tmp_path)
    assert (best.value, best.step, best.since, best.exhausted) == (0.7, 2, 2, False)
    best.see(6, {"eval/f1": 0.7})
    assert best.exhausted
    lowest = BestSoFar(CheckpointConfig(best_metric="eval/f1"), 0, tmp_path)
    assert (lowest.value, lowest.step, lowest.exhausted) == (0.5, 1, False)
    with pytest.raises(ConfigError, match=r"best_metric=eval/f1 is no figure.*eval/loss"):
        best.see(7, {"eval/loss": 1.0})


@pytest.mark.slow
def test_folds(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture) -> None:
    words = words_of("images", tmp_path, corpus, "train.steps=6", "train.folds=3", "optim.warmup_steps=1",
                     f"run.dir={tmp_path}/run")  # fmt: skip
    assert train(*words) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    each = [json.loads((tmp_path / "run" / f"fold{n}" / "summary.json").read_text()) for n in range(3)]
    values = [one["eval/accuracy"] for one in each]
    assert summary["eval/accuracy/mean"] == pytest.approx(np.mean(values))
    assert summary["eval/accuracy/std"] == pytest.approx(np.std(values, ddof=1))
    held = [json.loads((tmp_path / "run" / f"fold{n}" / "receipt.json").read_text())["data"] for n in range(3)]
    assert sum(one["records"]["heldout"]["records"] for one in held) == 1797
    times = [(tmp_path / "run" / f"fold{n}" / "summary.json").stat().st_mtime_ns for n in range(3)]
    (tmp_path / "run" / "fold1" / "summary.json").unlink()
    assert train(*words) == 0
    again = [(tmp_path / "run" / f"fold{n}" / "summary.json").stat().st_mtime_ns for n in range(3)]
    assert [a == b for a, b in zip(times, again, strict=True)] == [True, False, True], "only what is missing"
    assert train(*words, "optim.learning_rate=0.5") == 2, "they are of another experiment"
    assert "3 folds" in capsys.readouterr().out


def test_bits_per_byte_by_hand() -> None:
    """3 nats a token of 4 bytes."""
    task: Any = SimpleNamespace(bytes_per_token={"a": 4.0})
    assert bits_per_byte(task, "a", 3.0) == pytest.approx(3.0 * math.log2(math.e) / 4.0)
    assert math.isnan(bits_per_byte(task, "b", 3.0))


def test_the_spread_of_folds() -> None:
    assert spread([{"eval/f1": 1.0, "x": 1}, {"eval/f1": 3.0, "eval/only": 2.0}]) == {
        "eval/f1/mean": 2.0, "eval/f1/std": pytest.approx(2**0.5)
    }  # fmt: skip


@pytest.mark.parametrize(("words", "message"), [
    (["model=vit", "objective=causal_lm"], "this is ViTConfig.*model=gpt.*=classify or objective=regress"),
    (["model=bert", "objective=masked_lm", "model.lm_head=false", "data.seq_len=8"], "model.lm_head=true"),
    (["model=bert", "objective=classify", "data.augment.mixup=0.2", "data.seq_len=8"], "only images with classes"),
    (["model=bert", "objective=classify_tokens", "data.seq_len=8"], "model.classify_tokens=true"),
    (["model=bert", "objective=masked_lm", "data.packing=best_fit", "data.seq_len=8"], "=masked_lm: only causal_lm"),
    (["model=gpt", "data.curriculum=short_first"], "windows are all of one length; set data.packing=best_fit"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_experiment(compose(["run.name=x", *words]))


@pytest.mark.parametrize(("words", "message"), [
    (["objective=classify", "model=vit", *SMALL_IMAGE], "data.source=python_stdlib: .* labelled records"),
    (["objective=classify", "data=digits", "model=vit"], "8 x 8 x 1.*224 x 224 x 3.*model.image_size=8"),
    (["objective=classify", "data=digits", "model=vit", *SMALL_IMAGE, "model.num_classes=4"], "=4: the data have 10"),
    (["objective=span_corruption", "model=encdec", "tokenizer=bytes", "tokenizer.sentinels=1"], r"sentinels=1.*spans"),
])  # fmt: skip
def test_what_does_not_fit_the_data_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    experiment = compose(["run.name=x", *words, f"data.cache_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=message):
        prepare_task(experiment, lambda *_: None)


@pytest.mark.slow
def test_packed_mixtures_train_and_end_in_time(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture) -> None:
    """A mixture with caps and a course, packed, from short to long: on eight devices, and no further than it lasts."""
    part = f"{{paths: ['{corpus}/[0-2]*'], final_weight: 0.2, max_epochs: 2}}"
    other = f"{{paths: ['{corpus}/[3-5]*'], weight: 0.5, max_epochs: 1.5}}"
    words = ["run.name=x", "model=gpt", *COMMON, f"+data.mixture={{a: {part}, b: {other}}}", "data.packing=best_fit"]
    words += [
        "data.curriculum=short_first",
        "data.anneal_to_step=20",
        f"data.cache_dir={tmp_path}",
        "data.seq_len=1024",
    ]
    words += ["model.max_seq_len=1024", "train.steps=12", f"run.dir={tmp_path / 'run'}", "train.eval_every_steps=0"]
    assert train(*words) == 0
    packed = json.loads((tmp_path / "run" / "receipt.json").read_text())["data"]["a"]["packing"]
    assert packed["filled"] > 0.95
    shares = [part["mixture"] for part in json.loads((tmp_path / "run" / "receipt.json").read_text())["data"].values()]
    assert sum(one["rows"] for one in shares) == 12 * 8
    assert all(abs(one["asked"] - one["dealt"]) < 0.02 for one in shares)
    assert f"packed into {packed['rows']:,} rows" in capsys.readouterr().out.replace("\n", " ")
    assert train(*words, "train.steps=900", f"run.dir={tmp_path / 'other'}") == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("lmkit.train: ")]
    last = int(line.split("by step ")[1].split(" of ")[0])
    assert f"of train.steps=900: set train.steps={last} or less" in line
    assert 12 < last < 900
    assert not (tmp_path / "other").exists()


def test_a_run_goes_on_whose_mixture_knew_fewer_keys() -> None:
    assert _newer_key("data.mixture.a.b.max_epochs", "(absent)", 0.0)
    assert _newer_key("data.packing", "(absent)", "windows")
    assert not _newer_key("data.mixture.a.max_epochs", "(absent)", 2.0)
    assert not _newer_key("data.mixture.a.max_epochs", 1.0, 0.0)


def test_shares_and_formats_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"data.fold=20.*0 to 19"):
        DataConfig(fold=20)
    with pytest.raises(ConfigError, match=r"message_format='hello' lacks \{content\}"):
        DataConfig(message_format="hello")


@pytest.mark.parametrize(("rows", "more", "message"), [
    ([{"text": "x"}] * 8, [], "has no 'label'"),
    ([{"text": "x", "label": "a"}] * 8, ["data.labels=[a,b]"], "no training record has the class 'b'"),
])  # fmt: skip
def test_a_mistake_in_the_data_leaves_nothing(
    rows: list[dict], more: list[str], message: str, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture
) -> None:
    words = words_of("classify", tmp_path, corpus, f"run.dir={tmp_path}/run", *more)
    records(tmp_path, rows)
    assert train(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("words", "heads"), [
    (["objective=masked_lm"], (True, False, False, 0)),
    (["objective=masked_lm", "objective.next_sentence=true", "model.next_sentence_head=true"], (True, True, True, 0)),
    (["objective=classify"], (False, False, True, 2)),
    (["objective=classify_tokens", "model.classify_tokens=true"], (False, False, False, 2)),
])  # fmt: skip
def test_heads_that_nothing_trains_are_left_out(words: list[str], heads: tuple) -> None:
    experiment = compose(["run.name=x", "model=bert", "data.seq_len=8", *words])
    classes = 2 if "classify" in words[0] else 0
    fitted = fit_model(experiment.model, ByteTokenizer(mask=True), classes)
    model, notes = without_idle_heads(fitted, experiment)
    assert (model.lm_head, model.next_sentence_head, model.pooler, model.num_classes) == heads
    assert bool(notes) == (model != fitted)
