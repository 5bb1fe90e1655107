"""The verb: what it makes is what `train` reads, wherever its parts are made; finished stores; damage; weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lmkit.config import ConfigError
from lmkit.config.entry import compose, run_verb
from lmkit.config.sections.prepare import Executor, PrepareConfig
from lmkit.core.task import prepare_task
from lmkit.data.prepare import prepare
from lmkit.data.store import token_parts
from lmkit.data.store.tokens import TRAIN, TokenStore
from lmkit.prepare.__main__ import words_of as words_of_command
from lmkit.tracker import read_rows

TINY = ["+experiment=gpt_tiny", "tracker=none", "train.sample_tokens=0", "train.eval_batches=1", "tokenizer=bytes"]
NEEDS_EXTRA = "LOUD: cleaning is not tested; pip install 'lmkit[prepare]'"


def words_of(corpus: Path, tmp_path: Path, *more: str) -> list[str]:
    paths = ["data=text_files", f"data.paths=[{corpus}]", f"data.cache_dir={tmp_path / 'cache'}"]
    return [*TINY, *paths, "data.holdout_every=5", *more]


def verb(name: str, *words: str) -> int:
    return run_verb(name, f"lmkit.{name}.main:{name}", "about", list(words))


def never(*told: object) -> None:
    raise AssertionError(f"something is prepared again: {told}")


def test_what_it_makes_is_what_train_reads(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = words_of(corpus, tmp_path)
    assert verb("prepare", *words) == 0
    said = capsys.readouterr().out
    task = prepare_task(compose(words), never)
    (store,) = task.batches.stores.values()  # type: ignore[attr-defined]
    assert store.place in said
    page = (Path(store.place) / "report.html").read_text()
    counts = store.meta["splits"][TRAIN]
    assert f"{counts['documents']:,} to train on" in page
    assert "word" in page
    assert f"{counts['tokens']:,}" in said


def test_checking(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert verb("prepare", *words_of(corpus, tmp_path)) == 0
    (store,) = (tmp_path / "cache" / "stores").iterdir()
    assert verb("prepare", *words_of_command(["--check", str(store)])) == 0
    assert "none of them damaged" in capsys.readouterr().out
    shard = store / "parts" / "00000" / TRAIN / "tokens" / "c" / "0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert verb("prepare", f"prepare.check={store}") == 1
    said = capsys.readouterr().out.replace("\n", " ")
    assert "parts/00000/train/tokens/c/0 has changed since it was written (CRC-32)" in said
    assert verb("prepare", f"prepare.check={tmp_path}") == 2
    assert "no finished store" in capsys.readouterr().err


def test_text_to_be_cleaned_is_cleaned_first(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = words_of(corpus, tmp_path, "data.clean.exact=true")
    shutil.copy(corpus / "03.txt", corpus / "99.txt")
    assert verb("train", *words, f"run.dir={tmp_path / 'run'}") == 2
    assert "has not been cleaned yet: run python -m lmkit.prepare with the same words" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    pytest.importorskip("datatrove", reason=NEEDS_EXTRA)
    assert verb("prepare", *words) == 0
    (store,) = prepare_task(compose(words), never).batches.stores.values()  # type: ignore[attr-defined]
    assert sum(store.meta["splits"][split]["documents"] for split in store.meta["splits"]) == 60
    out = f"prepare.out={tmp_path / 'cleaned'}"
    assert verb("prepare", *words, out) == 0
    assert verb("train", *words, out, "data.clean.normalise=true", f"run.dir={tmp_path / 'run'}") == 2
    assert "was made with data.clean.normalise=False, now it is True: run python -m lmkit.prepare with another" in (
        capsys.readouterr().err
    )
    assert verb("train", *words, "data.weight_key=w", f"run.dir={tmp_path / 'run'}") == 2
    assert "data.weight_key=w with data.clean" in capsys.readouterr().err


def test_a_mixture_holds_a_document_once(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("datatrove", reason=NEEDS_EXTRA)
    two = f"a:{{paths:[{corpus}/0*.txt]}},b:{{paths:[{corpus}/1*.txt,{corpus}/03.txt]}}"
    mixture = f"+data.mixture={{{two},c:{{paths:[%s]}}}}"
    words = [*TINY, f"data.cache_dir={tmp_path / 'cache'}", "data.holdout_every=5", "data.clean.exact=true"]
    (tmp_path / "all").mkdir()
    for number in (3, 11):
        shutil.copy(corpus / f"{number:02}.txt", tmp_path / "all" / f"again{number}.txt")
    assert verb("prepare", *words, mixture % (tmp_path / "all")) == 2
    assert "data.clean: nothing of the text of 'c' is left (see " in capsys.readouterr().err
    words.append(mixture % f"{corpus}/2*.txt")
    assert verb("prepare", *words) == 0
    said = capsys.readouterr().out
    assert "data 'b': 1 of 11 documents are left out, as earlier parts of the mixture have them" in said
    task = prepare_task(compose(words), never)
    cleaned = {name: facts["cleaned"] for name, facts in task.facts.items()}
    assert cleaned["b"] == {"source": 11, "kept": 10, "copies_of_a": 1}
    store = task.batches.stores["b"]  # type: ignore[attr-defined]
    sizes = [(corpus / f"{number}.txt").stat().st_size for number in range(10, 20)]
    assert sum(store.meta["splits"][split]["bytes"] for split in store.meta["splits"]) == sum(sizes)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made(corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, how: PrepareConfig | None) -> dict[str, bytes]:
    """The files of a store of several parts."""
    monkeypatch.setattr(token_parts, "PART_BYTES", 20_000)
    experiment, run = compose(words_of(corpus, cache)), {}
    if how:
        from lmkit.prepare.elsewhere import Elsewhere

        run = {"run": Elsewhere(how, lambda *_: None)}
    store = prepare(experiment.data, experiment.tokenizer, **run).stores["text"]
    assert len(store.meta["parts"]) > 3
    return bytes_of(Path(store.place))


@pytest.mark.parametrize(
    "executor",
    [Executor.local, *(pytest.param(one, marks=pytest.mark.slow) for one in (Executor.ray, Executor.slurm))],
)
def test_wherever_parts_are_made_they_are_the_same(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: Executor, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("datatrove", reason=NEEDS_EXTRA)
    if executor is Executor.ray:
        pytest.importorskip("ray", reason="LOUD: the Ray executor is not tested; pip install 'lmkit[ray]'")
    here = made(corpus, tmp_path / "here", monkeypatch, None)
    if executor is Executor.slurm:
        request.getfixturevalue("slurm")
    how = PrepareConfig(
        executor=executor, workers=2, memory_gb=1, partition="cpu" if executor is Executor.slurm else ""
    )
    assert made(corpus, tmp_path / "there", monkeypatch, how) == here


@pytest.fixture
def store(corpus: Path, tmp_path: Path) -> Path:
    assert verb("prepare", *words_of(corpus, tmp_path)) == 0
    (found,) = (tmp_path / "cache" / "stores").iterdir()
    return found.rename(tmp_path / "store")


def trained(run: Path, *words: str) -> list[dict]:
    data = [f"data.cache_dir={run.parent / 'cache'}", "train.steps=6", "train.log_every_steps=1"]
    assert verb("train", *TINY, *words, *data, "train.eval_every_steps=0", f"run.dir={run}") == 0
    return [row for row in read_rows(run / "metrics.jsonl") if "train/loss" in row]


def test_a_finished_store_is_a_source(corpus: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def batches(*words: str):
        return prepare_task(compose([*TINY, f"data.cache_dir={tmp_path / 'cache'}", *words]), lambda *_: None).batches

    alone = batches("data=store", f"data.paths=[{store}]", "tokenizer=bpe")
    again = batches("data=text_files", f"data.paths=[{corpus}]", "data.holdout_every=5")
    for name, array in again.train(3, 8, np.arange(8)).items():
        np.testing.assert_array_equal(alone.train(3, 8, np.arange(8))[name], array)
    mixed = f"+data.mixture={{a: {{source: store, paths: [{store}]}}, b: {{paths: [{corpus}]}}}}"
    assert list(batches(mixed, "data.holdout_every=5").stores) == ["a", "b"]  # type: ignore[attr-defined]
    other = tmp_path / "other"
    shutil.copytree(store, other)
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"tokenizer_sha256": "f" * 64}))
    with pytest.raises(ConfigError, match="these stores have different tokenizers: a by"):
        batches(f"+data.mixture={{a: {{source: store, paths: [{store}]}}, b: {{source: store, paths: [{other}]}}}}")
    with pytest.raises(ConfigError, match="has 2 paths; give one"):
        batches("data=store", "data.paths=[a, b]")


def test_a_flipped_byte_ends_the_run_and_is_named(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    damage(store)
    status = verb("train", *TINY, "data=store", f"data.paths=[{store}]", f"run.dir={tmp_path / 'run'}")
    assert status == 2
    said = capsys.readouterr().err
    assert "train/tokens/c/0 is damaged" in said
    assert "data.on_corrupt=skip" in said


def damage(store: Path) -> None:
    """A byte of the fourth chunk of tokens."""
    shard = store / "parts" / "00000" / TRAIN / "tokens" / "c" / "0"
    raw = bytearray(shard.read_bytes())
    raw[3 * 8196 + 100] ^= 1
    shard.write_bytes(raw)


def test_with_skip_the_run_goes_on_and_tells(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    damage(store)
    rows = trained(tmp_path / "run", "data=store", f"data.paths=[{store}]", "data.on_corrupt=skip")
    lost = rows[-1]["train/lost_rows"]
    assert 0 < lost < 6 * compose(TINY).train.batch_size
    assert all(np.isfinite(row["train/loss"]) for row in rows)
    out = capsys.readouterr().out.replace("\n", "")
    assert out.count("train/tokens/c/0 is damaged") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["train/lost_rows"] == lost


def test_tokens_have_the_weights_of_their_text(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    records = [
        {"text": "naïve café here", "w": [[0, 5, 0.0], [6, 10, 2.5]]},
        {"text": "all of it", "w": 0.5},
        {"text": "no word"},
    ]
    lines = [json.dumps(record) for record in records] + [json.dumps({"text": f"more {n} " * 9}) for n in range(40)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    experiment = compose(words_of(folder, tmp_path, "data.weight_key=w", "data.holdout_every=20"))
    store = prepare(experiment.data, experiment.tokenizer).stores["text"]
    assert store.weighed
    found = {}
    ends = store.document_ends(TRAIN)
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        weights = store.weights(TRAIN, [start + 1], [end + 1])[0]
        found[store.document_name(TRAIN, number)] = weights.tolist()
    first = [0.0] * len("naïve".encode()) + [1.0] + [2.5] * len("café".encode()) + [1.0] * len(" here")
    wanted = {"a.jsonl:1": [*first, 1.0], "a.jsonl:2": [0.5] * 10, "a.jsonl:3": [1.0] * 8}
    assert {name: found[name] for name in wanted if name in found} == {n: w for n, w in wanted.items() if n in found}
    assert len(set(wanted) & set(found)) >= 2
    batch = prepare_task(experiment, never).batches.train(0, 64, np.arange(64))
    assert set(np.unique(batch["weights"])) >= {0.0, 1.0} or set(np.unique(batch["weights"])) >= {0.5, 1.0}


def test_weights_of_a_bpe_follow_its_tokens(tmp_path: Path) -> None:
    text = "the weights of tokens end where their last characters are " * 30
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text, "w": [[4, 11, 0.0]]}) for _ in range(20)))
    words = words_of(tmp_path / "a.jsonl", tmp_path, "data.weight_key=w", "tokenizer=bpe", "tokenizer.vocab_size=295")
    experiment = compose(words)
    data = prepare(experiment.data, experiment.tokenizer)
    store: TokenStore = data.stores["text"]
    end = int(store.document_ends(TRAIN)[0])
    (tokens,) = store.read(TRAIN, [1], [end])
    (weights,) = store.weights(TRAIN, [1], [end])
    before = data.tokenizer.decode(tokens[: int(np.argmin(weights))].tolist())
    inside = data.tokenizer.decode(tokens[weights == 0].tolist())
    assert text.startswith(before)
    assert before == "the"
    assert inside == " weights"
