"""A generated corpus with planted faults, through every step; the same bytes with more workers and after kills."""

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT

LOUD = "LOUD: cleaning is not tested; pip install 'lmkit[prepare]'"
pytest.importorskip("datatrove", reason=LOUD)
pytest.importorskip("py3langid", reason=LOUD)
sys.path.append(str(ROOT / "tools"))

from prepare_judge import judge
from prepare_plant import plant
from prepare_trial import digest, killed, run

from lmkit.config import ConfigError
from lmkit.config.sections.clean import CleanConfig
from lmkit.config.sections.prepare import PrepareConfig
from lmkit.data.sources.listing import expand
from lmkit.data.sources.text import TEXT_SUFFIXES, TextSource
from lmkit.prepare.clean import clean
from lmkit.prepare.clean.card import add_tokens

ENGLISH = """the of and that have with to be a in is it for was on are as at by this from they we say her she or an will
my one all would there their what so up out if about who get which go me when make can like time no just him know take
people into year your good some could them see other than then now look only come its over think also back after use two
how our work first well way even new want because any these give day most us river mountain letter captain harbour
winter garden history market engine window teacher village question morning answer weather kitchen doctor machine money
music night paper story summer system water world writer"""
WORDS = ENGLISH.split()
NUMBER = 24
RULES = ["gopher_repetition", "gopher", "fineweb"]


def sentences(rng: random.Random, words: int) -> str:
    """English words in sentences of twelve, a line each."""
    lines = [rng.choices(WORDS, k=12) for _ in range(words // 12)]
    return "\n".join(" ".join(line).capitalize() + "." for line in lines)


def files_of(folder: Path) -> TextSource:
    return TextSource(expand(str(folder), TEXT_SUFFIXES), "text", 20)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    rng = random.Random(3)
    folder = tmp_path_factory.mktemp("planted")
    texts = [(f"text{n}", sentences(rng, rng.randrange(150, 400))) for n in range(6 * NUMBER)]
    texts += [(f"german{n}", "Der Fluss ist sehr breit und das Wasser ist im Winter kalt. " * 8) for n in range(3)]
    texts += [("short", sentences(rng, 36)), ("blank", " \n\t\n ")]
    return folder, plant(texts, folder, NUMBER, 0.8, chunk=60)


@pytest.fixture(scope="module")
def cleaned(planted: tuple[Path, dict[str, Any]]) -> Path:
    """The corpus cleaned by one worker."""
    out = planted[0] / "one"
    run(planted[0], out, 1, RULES, tasks=3)
    return out


def test_what_was_planted_is_found_and_nothing_else_goes(planted, cleaned: Path) -> None:
    found = judge(cleaned, planted[1], 0.8)
    for kind in ("exact", "near", "email", "ip", "phone", "broken", "contaminated"):
        got, all_of_them = found[kind]
        assert all_of_them >= NUMBER // 4, f"{kind}: hardly any was planted"
        assert got >= 0.95 * all_of_them, f"{kind}: {got} of {all_of_them}"
    assert found["broken"][0] == NUMBER, "each is reported"
    assert found["reported but not broken"] == 0
    assert found["wrongly removed"][0] == 0
    assert 0 < found["kept"] < found["documents"]


def test_the_card_adds_up(planted, cleaned: Path) -> None:
    card = json.loads((cleaned / "card.json").read_text())
    rows = [json.loads(line) for path in (cleaned / "docs").glob("*.jsonl") for line in path.open()]
    steps = {step["step"]: step for step in card["steps"]}
    names = ["empty", "language", "gopher_repetition", "gopher", "fineweb", "contaminated", "exact", "near"]
    assert list(steps) == names
    assert card["documents"]["source"] == len(planted[1]["name_of"]) == steps["empty"]["in"]
    assert card["documents"]["kept"] == len(rows) == steps["near"]["out"]
    for before, after in itertools.pairwise(names):
        assert steps[before]["out"] == steps[after]["in"]
    for step in card["steps"]:
        assert step["in"] - step["out"] == sum(step["dropped"].values())
        files = (cleaned / "dropped" / step["step"]).glob("*.jsonl")
        assert sum(len(path.read_text().splitlines()) for path in files) == step["in"] - step["out"]
    assert card["bytes"]["kept"] == sum(len(row["text"].encode()) for row in rows)
    assert sum(card["lengths"]["kept"].values()) == len(rows)
    assert steps["empty"]["dropped"] == {"empty": 1}
    assert steps["language"]["dropped"] == {"language de": 3}
    assert steps["gopher"]["dropped"] == {"gopher_short_doc": 1}
    assert card["quarantine"]["records"] == NUMBER
    assert (
        sum(size * n for size, n in card["clusters"]["near"]["sizes"]) >= 2 * steps["near"]["dropped"]["near duplicate"]
    )
    assert all(len(c["documents"]) > 1 for c in card["clusters"]["near"]["largest"])
    assert not (cleaned / "work").exists()


def test_names_are_kept_and_placeholders_stand_for_addresses(planted, cleaned: Path) -> None:
    text = "".join(path.read_text() for path in (cleaned / "docs").glob("*.jsonl"))
    for placeholder in ("[EMAIL]", "[IP]", "[PHONE]"):
        assert text.count(placeholder) >= NUMBER
    assert {json.loads(line)["id"] for line in text.splitlines()} <= set(planted[1]["name_of"])


def test_two_workers_make_the_same_bytes(planted, cleaned: Path) -> None:
    run(planted[0], planted[0] / "two", 2, RULES, tasks=3)
    assert digest(planted[0] / "two") == digest(cleaned)


def test_killed_and_resumed_it_makes_the_same_bytes(planted, cleaned: Path) -> None:
    assert killed_and_resumed(planted[0], 2) == (2, digest(cleaned))


@pytest.mark.slow
def test_killed_ten_times(planted, cleaned: Path) -> None:
    assert killed_and_resumed(planted[0], 10) == (10, digest(cleaned))


def killed_and_resumed(folder: Path, kills: int) -> tuple[int, str]:
    """How often it was killed, and the digest of what came out in the end."""
    out = folder / f"killed{kills}"
    command = [sys.executable, str(ROOT / "tools" / "prepare_trial.py"), str(folder), "--run", str(out), "2"]
    command += ["--tasks", "3", "--rules", *RULES]
    return killed(command, out, kills, random.Random(kills), pause_sec=0), digest(out)


def test_a_finished_corpus_is_left_alone(planted, cleaned: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cleaned.rglob("*")}
    run(planted[0], cleaned, 1, RULES, tasks=3)
    assert {path: path.stat().st_mtime_ns for path in cleaned.rglob("*")} == before


def test_tokens_go_into_the_card_and_onto_the_page(cleaned: Path, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text((cleaned / "card.json").read_text())
    add_tokens(tmp_path, 1_234_567)
    assert json.loads((tmp_path / "card.json").read_text())["tokens"] == 1_234_567
    assert "1.23M" in (tmp_path / "report.html").read_text()


def small(folder: Path, broken: int = 0) -> TextSource:
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"text": sentences(random.Random(n), 60)}) for n in range(20)] + ["{"] * broken
    (folder / "a.jsonl").write_text("\n".join(rows))
    return files_of(folder)


def test_too_many_broken_records_fail_the_job_and_a_higher_limit_goes_on(tmp_path: Path) -> None:
    source, out = small(tmp_path / "texts", broken=5), tmp_path / "out"
    source.max_bad_share = 0.1
    with pytest.raises(
        ConfigError, match=r"5 of 25 records \(20.00%\).*max_bad_share=0.1.*set data.max_bad_share=0.2$"
    ):
        clean(source, CleanConfig(normalise=True), PrepareConfig(workers=1), out)
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 5
    assert not (out / "card.json").exists()
    source.max_bad_share = 0.2
    clean(source, CleanConfig(normalise=True), PrepareConfig(workers=1), out)
    assert json.loads((out / "card.json").read_text())["documents"] == {"source": 20, "kept": 20}


def test_a_folder_that_was_begun_otherwise_is_refused(tmp_path: Path) -> None:
    source, out = small(tmp_path / "texts", broken=5), tmp_path / "out"
    with pytest.raises(ConfigError, match="max_bad_share"):
        clean(source, CleanConfig(normalise=True), PrepareConfig(workers=1), out)
    with pytest.raises(ConfigError, match=r"was begun with data.clean.exact=False, now it is True: set prepare.out="):
        clean(source, CleanConfig(normalise=True, exact=True), PrepareConfig(workers=1), out)


def test_a_finished_corpus_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """Before, prepare.out with a corpus in it was used as it was, whatever was asked for."""
    source, out, how = small(tmp_path / "texts"), tmp_path / "out", PrepareConfig(workers=1)
    clean(source, CleanConfig(normalise=True), how, out)
    clean(source, CleanConfig(normalise=True), how, out)
    with pytest.raises(ConfigError, match=r"was begun with data.clean.exact=False, now it is True: set prepare.out="):
        clean(source, CleanConfig(normalise=True, exact=True), how, out)
    clean(small(tmp_path / "first"), CleanConfig(normalise=True), how, tmp_path / "a")
    clean(source, CleanConfig(normalise=True), how, out, earlier={"a": tmp_path / "a"})  # compares nothing
    both = CleanConfig(exact=True)
    clean(source, both, how, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"was begun with earlier=\(absent\), now it is {'a': "):
        clean(source, both, how, tmp_path / "b", earlier={"a": tmp_path / "a"})


@pytest.mark.parametrize("settings", [{"exact": True}, {"near": 0.7}, {"exact": True, "near": 0.9, "near_ngram": 3}])
def test_each_way_of_finding_duplicates_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    texts = [sentences(random.Random(n), 120) for n in range(6)]
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate([*texts, texts[2]]):  # the copy is in another task than the first
        (folder / f"{number}.txt").write_text(text)
    clean(files_of(folder), CleanConfig(**settings), PrepareConfig(workers=1, tasks=4), tmp_path / "out")
    rows = [json.loads(line) for path in (tmp_path / "out" / "docs").glob("*") for line in path.open()]
    assert sorted(row["text"] for row in rows) == sorted(texts)


def rows_of(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for path in sorted((out / "docs").glob("*")) for line in path.open()]


@pytest.mark.parametrize(("settings", "workers", "tasks"), [
    ({"exact": True}, 1, 3), ({"near": 0.7}, 1, 3),
    pytest.param({"exact": True, "near": 0.7}, 2, 3, marks=pytest.mark.slow),
])  # fmt: skip
def test_of_a_mixture_the_first_part_keeps_what_several_hold(
    settings: dict[str, Any], workers: int, tasks: int, tmp_path: Path
) -> None:
    """Copies, and with `near` a text of which one word in 120 is another, in parts before and in the part itself."""
    texts = [sentences(random.Random(n), 120) for n in range(9)]
    like = texts[3].replace(texts[3].split()[-1], "otherwise.")
    parts = {
        "a": texts[:3],
        "b": [texts[1], *texts[3:6], texts[3]],
        "c": [like, texts[6], texts[0], texts[4], texts[7]],
    }
    for name, some in parts.items():
        (tmp_path / name).mkdir()
        for number, text in enumerate(some):
            (tmp_path / name / f"{number}.txt").write_text(text)
    done: dict[str, Path] = {}
    for name in parts:
        out, how = tmp_path / "out" / name, PrepareConfig(workers=workers, tasks=tasks)
        clean(files_of(tmp_path / name), CleanConfig(**settings), how, out, earlier=done)
        done[name] = out
    kept = {name: sorted(row["id"] for row in rows_of(out)) for name, out in done.items()}
    of_c = ["1.txt", "4.txt"] if settings.get("near") else ["0.txt", "1.txt", "4.txt"]
    assert kept == {"a": ["0.txt", "1.txt", "2.txt"], "b": ["1.txt", "2.txt", "3.txt"], "c": of_c}
    cards = {name: json.loads((out / "card.json").read_text()) for name, out in done.items()}
    assert [card.get("copies") for card in cards.values()] == [None, {"a": 1}, {"a": 1, "b": 1 + ("near" in settings)}]
    if "exact" in settings:
        exact = next(step for step in cards["c"]["steps"] if step["step"] == "exact")
        assert exact["dropped"] == {"exact copy of a document in 'a'": 1, "exact copy of a document in 'b'": 1}
        assert cards["b"]["clusters"]["exact"]["sizes"] == [[2, 2]]
        said = "Documents that earlier parts of the mixture hold, too: &#x27;a&#x27; 1, &#x27;b&#x27; 1."
        assert said in (done["c"] / "report.html").read_text()
    card = done.pop("c") / "card.json"
    card.unlink()  # as if it had been killed before its end
    note = {key: value for key, value in cards["c"].items() if key in ("format", "source", "tasks", "data.clean")}
    (card.parent / "work").mkdir()
    (card.parent / "work" / "made_from.json").write_text(json.dumps(note | {"evaluation": "", "earlier": {"a": "0"}}))
    with pytest.raises(ConfigError, match=r"was begun with earlier"):
        clean(
            files_of(tmp_path / "c"),
            CleanConfig(**settings),
            PrepareConfig(workers=1, tasks=tasks),
            card.parent,
            earlier=done,
        )


def test_one_file_is_cleaned_by_several_workers(tmp_path: Path) -> None:
    source = small(tmp_path / "texts")
    outs = [tmp_path / f"out{tasks}" for tasks in (1, 3)]
    for out, tasks in zip(outs, (1, 3), strict=True):
        clean(source, CleanConfig(exact=True), PrepareConfig(workers=1, tasks=tasks), out)
    assert len(list((outs[1] / "docs").glob("*"))) == 3
    assert rows_of(outs[0]) == rows_of(outs[1]), "the same documents, in the same order, under the same names"


def test_progress_ends_at_the_whole_of_each_stage(tmp_path: Path) -> None:
    source, seen = small(tmp_path / "texts"), []
    settings = CleanConfig(exact=True, near=0.8)
    clean(source, settings, PrepareConfig(workers=1), tmp_path / "out", lambda *row: seen.append(row))
    last = {what: (done, total) for what, done, total in seen}
    assert list(last) == [
        f"cleaning {n}/6: {name}"
        for n, name in enumerate(("filter", "copies", "signatures", "buckets", "clusters", "documents"), 1)
    ]
    assert set(last.values()) == {(source.num_bytes, source.num_bytes)}
