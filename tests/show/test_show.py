"""A row told in words is the row that is learned from."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from data.streams import END, Stream
from weights.test_specials import make as make_tokenizer

from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment, to_plain
from lmkit.config.saved import write_model, write_tokenizer
from lmkit.core.task import Task, prepare_task, settled
from lmkit.data.batches.records import Records
from lmkit.data.store.tokens import TRAIN
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.show.__main__ import main
from lmkit.show.row import _documents, told
from lmkit.weights import start_tokenizer

TINY = ["+experiment=gpt_tiny", "data=text_files", "data.holdout_every=5", "train.steps=50"]


def words_of(corpus: Path, *more: str) -> list[str]:
    return [*TINY, f"data.paths=[{corpus}]", f"data.cache_dir={corpus.parent / 'cache'}", *more]


def task_of(words: list[str]) -> tuple[Experiment, Task]:
    experiment = compose(words)
    return experiment, prepare_task(experiment, lambda *_: None)


def shown(capsys: pytest.CaptureFixture, *words: str) -> dict:
    status = main([*words, "json=true"])
    out = capsys.readouterr()
    assert status == 0, out.err
    return json.loads(out.out)


@pytest.mark.parametrize("packing", ["windows", "best_fit"])
@pytest.mark.parametrize("place", ["experiment", "run", "store"])
def test_what_is_shown_is_what_is_learned(corpus: Path, capsys, packing: str, place: str) -> None:
    """From the texts, ends, weights and padding shown, the row of the batch is put together again."""
    more = [f"data.packing={packing}", "data.seq_len=2500", "model.max_seq_len=2500", "run.seed=3"]
    words = words_of(corpus, *more)
    experiment, task = task_of(words)
    end, row = task.tokenizer.end_id, 5  # type: ignore[union-attr]
    (store,) = task.batches.stores.values()  # type: ignore[attr-defined]
    asked = words
    if place == "run":
        asked = [f"store={run_of(corpus.parent / 'run', experiment, task)}"]
    elif place == "store":
        asked = [f"store={store.place}", "train.batch_size=8", *(one for one in more if not one.startswith("model"))]
    padded = 0
    for step in (0, 7, 33):
        found = shown(capsys, *asked, f"step={step}", f"row={row}")
        batch = task.batches.train(step, 8, np.array([row]))
        inputs, weights = [], []
        for piece in found["pieces"]:
            ids, weighed = [], []
            for number, one in enumerate(piece["documents"]):
                before = [end] if number == 0 and one["tokens"][0] == 0 else []
                ids += [*before, *one["text"].encode(), *([end] if one["ended"] else [])]
                weighed += [None] * len(before) + [w for count, w in one["weights"] for _ in range(count)]
                name = store.document_name(TRAIN, one["number"])
                assert one["name"] == name
                assert "".join(one["texts"]) == one["text"]
            inputs, weights = inputs + ids[:-1], weights + weighed[1:]
            assert len(ids) == piece["tokens"][1] - piece["tokens"][0]
        padding = found["padding"][1] - found["padding"][0]
        assert inputs + [end] * padding == batch["inputs"][0].tolist()
        assert weights + [0.0] * padding == batch["weights"][0].tolist()
        assert (found["part"], found["epoch"], found["seed"]) == ("text", found["epoch"], 3)
        padded += padding
        assert main([*asked, f"step={step}", f"row={row}"]) == 0
        assert capsys.readouterr().out == told(found) + "\n"
    assert bool(padded) == (packing == "best_fit")


def run_of(path: Path, experiment: Experiment, task: Task) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump(to_plain(experiment), sort_keys=False))
    (path / "receipt.json").write_text(json.dumps({"data": task.facts}))
    write_model(path, task.model)
    return path


def test_a_tokenizer_of_a_folder(corpus: Path, capsys) -> None:
    """Of an experiment, and of its run once the folder is gone."""
    folder = make_tokenizer("llama", corpus.parent)
    words = words_of(corpus, "tokenizer=init", f"init_from={folder}", "model.vocab_size=0")
    found = shown(capsys, *words, "step=0", "row=0")
    experiment = compose(words)
    config = start_tokenizer(experiment.tokenizer, str(folder))
    task = prepare_task(dataclasses.replace(experiment, tokenizer=config), lambda *_: None)
    run = run_of(corpus.parent / "run", experiment, task)
    assert task.tokenizer is not None
    task.tokenizer.save(run / "tokenizer.json")
    write_tokenizer(run, settled(config, task))
    shutil.rmtree(folder)
    assert shown(capsys, f"store={run}", "step=0", "row=0") == found


def test_documents_of_any_stretch() -> None:
    """Wherever it begins and ends: nothing is left out, nothing is empty, ends are told where they lie in it."""
    lengths, codec = [3, 1, 4, 6], ByteTokenizer()
    stream = Stream(lengths)
    stream.all = np.where(stream.all == END, END, 65 + stream.all % 26)
    for start in range(len(stream.all)):
        for stop in range(start + 1, len(stream.all) + 1):
            tokens = stream.all[start:stop]
            found = _documents(stream, stream.ends, start, tokens, None, codec)  # type: ignore[arg-type]
            ids = [END] if tokens[0] == END else []
            for one in found:
                assert one["name"] == f"doc{one['number']}"
                assert one["length"] == lengths[one["number"]]
                assert 0 <= one["tokens"][0] < one["tokens"][1] <= one["length"]
                ids += [*one["text"].encode(), *([END] if one["ended"] else [])]
            assert ids == tokens.tolist(), (start, stop)


def test_weights_and_padding_are_told() -> None:
    document = {"number": 1200, "name": "a.txt", "tokens": [0, 4], "length": 9, "ended": False, "text": "ab\ncd"}
    split = document | {"weights": [[1, None], [2, 0.0], [2, 0.5]], "texts": ["a", "b\n", "cd"]}
    same = document | {"weights": [[1, None], [4, 1.0]], "texts": ["a", "b\ncd"], "ended": True}
    row = {"step": 1, "row": 2, "batch_size": 8, "seed": 0, "part": "p", "epoch": 1, "index": 3, "count": 4000}
    piece = {"tokens": [10, 1015], "positions": [0, 4], "documents": [split, same]}
    assert told(row | {"pieces": [piece], "padding": [4, 8]}).split("\n") == [
        "step 1, row 2 of 8, run.seed=0: part 'p', epoch 1, number 3 of its 4,000 rows",
        "piece 1 of 1: tokens 10 to 1,014 of the training split, positions 0 to 3",
        "document 1,200 'a.txt': tokens 0 to 3 of 9",
        "  1 tokens, read, not predicted", "  | a",
        "  2 tokens, weight 0", "  | b", "  | ",
        "  2 tokens, weight 0.5", "  | cd",
        "document 1,200 'a.txt': tokens 0 to 3 of 9, and its end, weight 1", "  | ab", "  | cd",
        "padding: positions 4 to 7, weight 0",
    ]  # fmt: skip


def test_a_mixture_names_its_part(corpus: Path, capsys) -> None:
    parts = f"+data.mixture={{a: {{paths: ['{corpus}/0*']}}, b: {{paths: ['{corpus}/[1-5]*'], max_epochs: 1}}}}"
    words = [*TINY, parts, f"data.cache_dir={corpus.parent / 'cache'}"]
    experiment, task = task_of(words)
    run = run_of(corpus.parent / "run", experiment, task)
    seen = {shown(capsys, f"store={run}", "step=2", f"row={row}")["part"] for row in range(8)}
    assert seen == {"a", "b"}
    assert main([f"store={run}", "train.steps=100000", "step=3", "row=1", "data.mixture.a.max_epochs=2"]) == 2
    assert "max_epochs" in capsys.readouterr().err


def test_a_masked_row_and_its_hidden_tokens(corpus: Path, capsys) -> None:
    words = words_of(corpus, "model=bert", "model.num_layers=1", "model.max_seq_len=64", "objective=masked_lm")
    found = shown(capsys, *words, "step=1", "row=0")
    text = found["pieces"][0]["documents"][0]["text"]
    assert "padding" not in found
    assert "[mask]" in found["fields"]["inputs"]
    assert len(found["fields"]["inputs"].replace("[mask]", "#").replace("[end]", "#")) == 64
    targets = {place: token for place, token, weight in found["fields"]["targets"] if weight}
    assert len(targets) == round(0.15 * 64)
    assert sum(text[place] == token for place, token in targets.items() if place < len(text)) >= len(targets) - 2
    assert main([*words, "step=1", "row=0"]) == 0
    assert "  place " in capsys.readouterr().out


def test_records_have_fields(tmp_path: Path, capsys) -> None:
    path = tmp_path / "chat.jsonl"
    rows = [[{"role": "user", "content": f"ask {n}"}, {"role": "assistant", "content": f"say {n}"}] for n in range(40)]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    words = ["+experiment=gpt_tiny", "objective=chat", "data=records", f"data.paths=[{path}]"]
    words += [f"data.cache_dir={tmp_path / 'cache'}", "data.curriculum=short_first"]
    found = shown(capsys, *words, "step=0", "row=3")
    asked, answered = found["fields"]["targets"]
    assert asked == [asked[0], 0.0]
    assert answered[1] == 1.0
    number = answered[0].removeprefix("say ").removesuffix("[end]")
    assert asked[0].startswith(f"<|user|>\nask {number}[end]")
    assert len(number) == 1, "the shortest come first"
    assert main([*words, "step=0", "row=3"]) == 0
    assert "  weight 1\n  | say" in capsys.readouterr().out
    digits = ["+experiment=vit_digits", f"data.cache_dir={tmp_path / 'cache'}"]
    found = shown(capsys, *digits, "step=0", "row=3")
    _, task = task_of(digits)
    assert isinstance(task.batches, Records)
    label = int(task.batches.train(0, 64, np.array([3]))["labels"][0])
    assert found["fields"]["labels"] == f"{label} ({task.labels[label]})"
    assert found["fields"]["images"].startswith("float32 [8, 8, 1] from ")


@pytest.mark.parametrize(("words", "parts"), [
    (["step=1"], ["row="]),
    (["step=-1", "row=1"], ["step=-1", "from 0"]),
    (["step=1", "row=1", "nonsense"], ["'nonsense'", "KEY=VALUE"]),
    (["step=1", "rwo=1"], ["row=:", "'rwo'", "'row'"]),
    (["step=1", "row=8"], ["row=8", "train.batch_size=8", "7"]),
    (["step=50", "row=1"], ["step=50", "train.steps=50", "49"]),
    (["step=1", "row=1", "data.seq_len=9000000"], ["data.seq_len=9000000"]),
    (["step=1", "row=1", "data.seq_lne=9"], ["data.seq_lne", "data.seq_len"]),
])  # fmt: skip
def test_mistakes_are_one_line(corpus: Path, capsys, words: list[str], parts: list[str]) -> None:
    assert main([*words_of(corpus), *words]) == 2
    lines = [one for one in capsys.readouterr().err.splitlines() if not one.endswith("...")]
    assert len(lines) == 1
    assert all(part in lines[0] for part in parts), lines[0]


def test_mistakes_in_what_is_opened(corpus: Path, capsys, tmp_path: Path) -> None:
    words = words_of(corpus)
    experiment, task = task_of(words)
    run = run_of(tmp_path / "run", experiment, task)
    (store,) = task.batches.stores.values()  # type: ignore[attr-defined]
    at = ["step=1", "row=1"]

    def error(*asked: str) -> str:
        assert main([*asked, *at]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "neither store=PATH" in error()
    assert "neither config.yaml nor meta.json" in error(f"store={corpus}")
    assert "data=idx: the run" in error(f"store={run}", "data=idx")
    assert "model.num_layers=3" in error(f"store={run}", "model.num_layers=3")
    assert "objective.kind=masked_lm" in error(
        f"store={store.place}", "objective=masked_lm", "model=bert", "data.seq_len=64"
    )
    (corpus / "00.txt").write_text("other words")
    assert "no longer those it learned from: text_sha256 of 'text'" in error(f"store={run}")
    assert main(["--help"]) == 0
    assert "store=RUN" in capsys.readouterr().out


def test_it_needs_no_accelerator(corpus: Path) -> None:
    """As a command of its own: jax is not even imported."""
    words = [*words_of(corpus), "step=1", "row=1"]
    code = f"import sys; from lmkit.show.__main__ import main; code = main({words}); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")
