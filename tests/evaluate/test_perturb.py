"""Variants of items change what they should and nothing else; the figures are those of data written so."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from harness.runs import TEXT_MODEL, evaluate, make_run, results

from lmkit.config.entry import compose
from lmkit.config.sections.evaluate import EvaluateConfig, Perturb
from lmkit.evaluate.own import judge
from lmkit.evaluate.perturb import reordered, reworded, stability, typos
from lmkit.weights import open_model

BERT = ["model=bert", "objective=classify", *TEXT_MODEL, "data=records", "data.seq_len=64", "data.holdout_every=2"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier of pairs and one of texts, never trained; their records, and the same in swapped case."""
    folder = tmp_path_factory.mktemp("perturb")
    rng, words = random.Random(0), ["Lantern", "orchard", "Meadow", "timber", "granite", "Willow"]
    places = {name: folder / name / "records.jsonl" for name in ("plain", "case")}  # what is held out goes by the name
    for place in places.values():
        place.parent.mkdir()
    files = {name: place.open("w") for name, place in places.items()}
    for _ in range(80):
        one, two = (" ".join(rng.choices(words, k=4)) for _ in range(2))
        row = {"text": f"{one}. {two}!", "pair": two, "label": rng.choice("abc")}
        files["plain"].write(json.dumps(row) + "\n")
        swapped = {key: row[key].swapcase() for key in ("text", "pair")} | {"size": "another than the plain file's"}
        files["case"].write(json.dumps(row | swapped) + "\n")
    for file in files.values():
        file.close()
    make_run(folder / "pairs", [*BERT, f"data.paths=[{places['plain']}]", "data.pair_key=pair"])
    make_run(folder / "texts", [*BERT, f"data.paths=[{places['plain']}]"])
    return places | {name: folder / name for name in ("pairs", "texts")}


@pytest.mark.parametrize(("kind", "other"), [
    ("case", ["data=records", "data.paths=[{case}]", "data.pair_key=pair"]),
    ("order", ["data=records", "data.paths=[{plain}]", "data.text_key=pair", "data.pair_key=text"]),
])  # fmt: skip
def test_a_classifier_gets_the_texts_as_if_the_data_were_written_so(
    places: dict[str, Path], kind: str, other: list[str]
) -> None:
    run = str(places["pairs"])
    model = open_model(run)
    given = compose([f"init_from={run}", f"evaluate.perturb=[{kind}]", "evaluate.resamples=200"])
    judged = judge(given, run, model)
    more = [word.format(**places) for word in other]
    written = judge(compose([f"init_from={run}", *more, "data.seq_len=64", "data.holdout_every=2"]), run, model)
    plain, changed = judged.examples.columns, written.examples.columns
    assert (plain["labels"] == changed["labels"]).all()
    share = judged.figures[f"changed_by_{kind}"]
    assert share.value == pytest.approx((plain["predicted"] != changed["predicted"]).mean())
    assert 0 < share.low < share.value < share.high < 1
    assert judged.figures[f"accuracy_with_{kind}"].value == pytest.approx(written.figures["accuracy"].value)


def test_a_classifier_of_texts_in_all_that_is_written(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = [f"init_from={places['texts']}", "evaluate.perturb=[typos,order]", f"evaluate.out={tmp_path}"]
    assert evaluate(*given, "evaluate.resamples=50") == 0
    row, page, said = results(tmp_path)["heldout"], (tmp_path / "report.html").read_text(), capsys.readouterr().out
    for kind in ("typos", "order"):
        low, high = row[f"changed_by_{kind}_interval,none"]
        assert low <= row[f"changed_by_{kind},none"] <= high
        assert row[f"changed_by_{kind},none"] > 0
        assert f"Changed by {kind}" in page
        assert f"changed_by_{kind}" in said


def test_what_cannot_be_perturbed_gets_one_line(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text("".join(json.dumps({"text": f"one sentence {n}", "label": "abc"[n % 3]}) + "\n" for n in range(40)))
    gpt = ["model=gpt", *TEXT_MODEL, "data=text_files", f"data.paths=[{file}]", "data.seq_len=32"]
    make_run(tmp_path / "gpt", [*gpt, "data.holdout_every=4"])
    make_run(tmp_path / "one", [*BERT, f"data.paths=[{file}]"])
    for run, parts in (("gpt", ["evaluate.perturb=[order]", "objective.kind=causal_lm"]),
                       ("one", ["evaluate.perturb=[order]", "no record", "data.pair_key"])):  # fmt: skip
        assert evaluate(f"init_from={tmp_path / run}", "evaluate.perturb=[order]") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert all(part in line for part in parts), line


def template(text: Any, choice: Any, target: Any) -> Any:
    return SimpleNamespace(doc_to_text=text, doc_to_choice=choice, doc_to_target=target)


DOC = {"q": "Which Colour stands here", "note": "a Word", "key": "right", "c": {"text": ["red", "right", "blue"]}}
LISTED = template(lambda doc: f"{doc['q']} A {doc['c']['text'][0]} B {doc['c']['text'][1]}",
                  lambda doc: ["A", "B", "C"], lambda doc: doc["c"]["text"].index(doc["key"]))  # fmt: skip
SAID = template(lambda doc: doc["q"], lambda doc: doc["c"]["text"], lambda doc: doc["key"])


def test_fields_that_the_answer_is_made_from_are_kept() -> None:
    for task in (LISTED, SAID):
        new, order = reworded(task, DOC, Perturb.case, random.Random(0))
        assert new == DOC | {"q": "wHICH cOLOUR STANDS HERE", "note": "A wORD"}
        assert order == [0, 1, 2]
    assert DOC["q"] == "Which Colour stands here"


def test_choices_get_another_order_wherever_they_stand() -> None:
    """Said after the prompt, or listed in it under letters; a prompt that lists none is left as it is."""
    for task in (LISTED, SAID):
        new, order = reordered(task, DOC, random.Random(1))
        assert order != [0, 1, 2]
        assert new["c"]["text"] == [DOC["c"]["text"][place] for place in order]
    fixed = template(lambda doc: doc["q"], lambda doc: ["yes", "no", "maybe"], lambda doc: 0)
    assert reordered(fixed, DOC, random.Random(1)) == (DOC, [0, 1, 2])


def test_typos_move_two_letters() -> None:
    text = "a wonderful evening with friendly neighbours and their musical instruments"
    new = typos(text, random.Random(0))
    (pair,) = [(a, b) for a, b in zip(text.split(), new.split(), strict=True) if a != b]
    assert sorted(pair[0]) == sorted(pair[1])
    assert (pair[0][0], pair[0][-1]) == (pair[1][0], pair[1][-1])
    assert typos("to be or not", random.Random(0)) == "to be or not"


def test_shares_and_their_intervals() -> None:
    config = EvaluateConfig(resamples=500)
    changed, right = np.arange(100) < 20, np.arange(100) < 50
    found = stability(Perturb.typos, changed, right, [100], config, 0)
    share = found["changed_by_typos"]
    assert share.value == pytest.approx(0.2)
    assert share.stderr == pytest.approx(0.04, rel=0.15), "that of a binomial"
    assert found["accuracy_with_typos"].value == pytest.approx(0.5)
