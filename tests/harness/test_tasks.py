"""Tasks without a network: what lm-eval gets, what is kept, one line for what cannot be had. Needs extra `evals`."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness.local_tasks import CHAT, write_tasks
from harness.runs import TEXT_MODEL, evaluate, make_run, results, write_records

pytest.importorskip("lm_eval", reason="LOUD: lm-eval's tasks are not tested; pip install 'lmkit[evals]'")
import jax

from lmkit.config.sections.evaluate import EvaluateConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.evaluate import perturb
from lmkit.harness.tasks import make_model
from lmkit.parallel.mesh import build_mesh
from lmkit.weights import open_model

GPT = ["model=gpt", *TEXT_MODEL, "data=text_files", "data.seq_len=64", "model.max_seq_len=256"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs, and a folder of tasks."""
    folder = tmp_path_factory.mktemp("harness")
    data = write_records(folder / "records.jsonl")
    make_run(folder / "run", [*GPT, f"data.paths=[{data}]"])
    (folder / "chat.jinja").write_text(CHAT)
    make_run(folder / "chat", [*GPT, f"data.paths=[{data}]", f"tokenizer.chat_template={folder / 'chat.jinja'}"])
    make_run(folder / "other", [*GPT, f"data.paths=[{data}]", "model.init_std=0.1"])
    bert = [f"data.paths=[{data}]", *TEXT_MODEL, "data.seq_len=32"]
    make_run(folder / "bert", ["model=bert", "objective=classify", "data=records", *bert])
    make_run(folder / "encdec", ["model=encdec", "objective=seq2seq", "data=records", *bert])
    names = ("run", "chat", "other", "bert", "encdec")
    return {name: folder / name for name in names} | {"tasks": write_tasks(folder / "tasks")}


def words(places: dict[str, Path], *more: str) -> list[str]:
    return [word.format(**places) for word in ("evaluate.include={tasks}", *more)]


def samples(out: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"samples_{task}.jsonl").read_text().splitlines()]


def test_tasks_and_all_that_is_kept(places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Scores are the same at another batch size; the files are lm-eval's; changed answers are counted."""
    found = []
    for size in (0, 3):
        out = tmp_path / str(size)
        given = words(places, "init_from={run}", "evaluate.tasks=[pick,write,roll]", f"evaluate.out={out}",
                      f"evaluate.batch_size={size}", "evaluate.max_len=200")  # fmt: skip
        more = ["evaluate.perturb=[typos,case,order]", "evaluate.resamples=100"] if size else []
        assert evaluate(*given, *more) == 0
        found.append({task: samples(out, task) for task in ("pick", "write", "roll")})
    assert found[0] == found[1]
    rows = results(tmp_path / "3")
    assert 0 <= rows["pick"]["acc,none"] <= 1
    assert rows["roll"]["bits_per_byte,none"] > 0
    one = found[0]["pick"][5]
    assert one["arguments"]["gen_args_0"]["arg_0"] == one["doc"]["question"]
    assert [float(answer[0][0]) for answer in one["resps"]] == [float(answer[0]) for answer in one["filtered_resps"]]
    receipt = json.loads((tmp_path / "3" / "receipt.json").read_text())
    for kind in ("typos", "case"):
        assert receipt["changed"][f"pick, {kind}"]["altered"] == 24
        low, high = rows["pick"][f"changed_by_{kind}_interval,none"]
        assert low <= rows["pick"][f"changed_by_{kind},none"] <= high
    changed = receipt["changed"]["pick, case"]["changed"]
    assert rows["pick"]["changed_by_case,none"] == pytest.approx(len(changed) / 24)
    assert changed
    assert receipt["changed"]["pick, order"] == {"items": 24, "altered": 0, "changed": []}
    assert "changed_by_order,none" not in rows["pick"], "the prompt does not list the choices"
    assert "pick: order alters the requests of 0 of 24 items only" in receipt["notes"]
    page = (tmp_path / "3" / "report.html").read_text()
    for part in ("Confidence and accuracy", "Categories", "Hardest", "Changed by typos"):
        assert part in page
    assert any(row["doc"]["question"] in page for row in found[0]["pick"])
    capsys.readouterr()
    short = words(places, "init_from={run}", "evaluate.tasks=[pick]", "evaluate.max_len=40", "evaluate.limit=4",
                  "evaluate.num_fewshot=1")  # fmt: skip
    assert evaluate(*short, f"evaluate.out={tmp_path / 'short'}") == 0
    said = capsys.readouterr().out
    assert "16 requests were longer than the model: cut from the left" in said
    assert "pick: its solved examples come from the items that are scored" in said


def test_models_are_compared_on_the_same_items(places: dict[str, Path], tmp_path: Path) -> None:
    given = words(places, "evaluate.compare=[{run},{other},{run}]", "evaluate.tasks=[roll]")
    assert evaluate(*given, f"evaluate.out={tmp_path}", "evaluate.resamples=300") == 0
    pairs = json.loads((tmp_path / "results.json").read_text())["compared"]
    verdicts = [one["tasks"][0]["verdict"] for one in pairs]
    assert verdicts[1] == "no difference"
    assert pairs[1]["tasks"][0]["p"] == 1
    assert {verdicts[0], verdicts[2]} == {"A is better", "B is better"}
    assert "B − A" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "model_2" / "samples_roll.jsonl").is_file()


def test_prompts_and_their_variants_are_made_by_lm_eval(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """System prompt, solved examples and chat template; an item that is not reworded gets the very same requests."""
    monkeypatch.setattr(perturb, "_written", lambda text, kind, rng: text)
    given = words(places, "init_from={chat}", "evaluate.tasks=[letters]", "evaluate.chat=true",
                  "evaluate.system_prompt=' Be brief'", "evaluate.num_fewshot=2", "evaluate.limit=6",
                  "evaluate.perturb=[case,order]", f"evaluate.out={tmp_path}")  # fmt: skip
    assert evaluate(*given) == 0
    tasks = [json.loads(line) for line in (places["tasks"] / "pick.jsonl").read_text().splitlines()]

    def turn(doc: dict[str, Any]) -> str:
        return "[user] " + " ".join(
            [doc["question"], *(f"{a} {b}" for a, b in zip("ABCD", doc["choices"], strict=True))]
        )

    solved = {f"{turn(doc)}\n[assistant] It is {'ABCD'[doc['answer']]}\n": doc for doc in tasks}
    for row in samples(tmp_path, "letters"):
        prompt = row["arguments"]["gen_args_0"]["arg_0"]
        start, first, second, last = re.split(r"(?=\[user\])", prompt)
        assert start == "<|endoftext|>[system] Be brief\n"
        assert first != second
        assert row["doc"] not in (solved[first], solved[second])
        assert last == f"{turn(row['doc'])}\n[assistant] It is"
        assert [row["arguments"][f"gen_args_{n}"]["arg_1"] for n in range(4)] == [" A", " B", " C", " D"]
    changed = json.loads((tmp_path / "receipt.json").read_text())["changed"]
    assert changed["letters, case"] == {"items": 6, "altered": 0, "changed": []}
    assert changed["letters, order"]["altered"] >= 5, "of 24 orders one is the old one"


@pytest.mark.parametrize(("given", "parts"), [
    (["init_from={run}", "evaluate.tasks=[pik]"], ["no task 'pik'", "'pick'"]),
    (["init_from={run}", "evaluate.tasks=[gone]"], ["'gone'", "gone.jsonl", "evaluate.download=true"]),
    (["init_from={run}", "evaluate.tasks=[empty]"], ["'empty'"]),
    (["init_from=nowhere", "evaluate.tasks=[gone]"], ["'gone'"]),
    (["init_from={bert}", "evaluate.tasks=[pick]"], ["BERTConfig", "next token"]),
    (["init_from=nowhere", "evaluate.tasks=[letters]", "evaluate.num_fewshot=24"], ["num_fewshot=24", "has 23"]),
    (["init_from={encdec}", "evaluate.tasks=[pick]"], ["encoder-decoder", "different halves"]),
    (["init_from={run}", "evaluate.tasks=[pick]", "evaluate.chat=true"], ["evaluate.chat=true", "template"]),
    (["init_from={run}", "evaluate.tasks=[pick]", "evaluate.against=nowhere"], ["nowhere"]),
])  # fmt: skip
def test_mistakes_get_one_line(
    places: dict[str, Path], given: list[str], parts: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert evaluate(*words(places, *given)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lmkit.evaluate")]
    for part in parts:
        assert part in line, line


def test_a_task_of_the_hub_is_named_at_once(places: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    """A stock task whose data are not in the cache: named, with the network left alone, before the model is read."""
    assert evaluate("init_from=nowhere", "evaluate.tasks=[arc_easy]") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "'arc_easy' are not to be had" in line
    assert evaluate("init_from=nowhere", "evaluate.tasks=[arc_esy]") == 2
    assert "Did you mean 'arc_easy'?" in capsys.readouterr().err


def test_the_model_ends_at_stop_strings_and_with_templates(places: dict[str, Path]) -> None:
    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    model = make_model(open_model(str(places["run"])), TokenizerConfig(), EvaluateConfig(tasks=["x"]), mesh)

    def write(**how: Any) -> str:
        return model.generate_until([SimpleNamespace(args=("some words", {"max_gen_toks": 16, **how}))])[0]

    whole = write()
    assert len(whole) > 4
    stop = whole[2:4]
    assert write(until=[stop]) == whole[: whole.find(stop)]
    assert write(until=["\0never"]) == whole
    texts = ["some words", "other words that are longer than these", "x"]
    together = model.generate_until([SimpleNamespace(args=(text, {"max_gen_toks": 8})) for text in texts])
    assert together[0] == whole[: len(together[0])]
