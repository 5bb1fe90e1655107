"""Scaling laws: known ones are found again, intervals cover, what is held out stays out, mistakes are named."""

import json
import math
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from threadpoolctl import threadpool_limits

from helpers import ROOT
from lmkit.config.base import ConfigError
from lmkit.config.entry import compose, run_verb
from lmkit.config.sections.families import GPTConfig
from lmkit.pages.law import marks
from lmkit.plan.scaling.__main__ import main
from lmkit.plan.scaling.fit import Law, Points, _Problem, fit
from lmkit.plan.scaling.main import divide, points_of
from lmkit.plan.scaling.picture import draw_page, draw_svg
from lmkit.plan.scaling.result import Result
from lmkit.plan.scaling.runs import FinishedRun, count, read_run, read_runs

TRUE = Law(0.9, 40.0, 300.0, 0.35, 0.4)
LADDER = [(2, 20), (2, 60), (2, 180), (3, 10), (3, 30), (4, 3), (4, 8), (5, 1), (5, 3), (6, 4)]
STUDY = ROOT / "experiments" / "scaling_law"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the verb has it: BLAS threads only wait for each other here."""
    with threadpool_limits(1):
        yield


def make_runs(noise: float = 0.0, seed: int = 0) -> list[FinishedRun]:
    """The ladder of the study, with losses by TRUE."""
    rng, runs = np.random.default_rng(seed), []
    for depth, ratio in LADDER:
        params = 3072 * depth**3
        tokens = ratio * params
        loss = float(TRUE.loss(params, tokens)) * math.exp(noise * rng.standard_normal())
        flops = 6.0 * params * tokens
        name = f"depth{depth}_x{ratio}"
        runs.append(
            FinishedRun(name, params, params + 8224 * depth, tokens, tokens / 1e7, flops, loss, {"text": "abc"})
        )
    return sorted(runs, key=lambda run: run.flops)


def make_file(path: Path, runs: list[FinishedRun]) -> str:
    path.write_text(json.dumps({"runs": [run._asdict() for run in runs]}))
    return str(path)


def result_of(runs: list[FinishedRun], held_out: int = 1, draws: int = 40) -> Result:
    fitted, rest = divide(runs, held_out)
    return Result(fit(points_of(fitted, "non_embedding"), draws=draws, seed=0), fitted, rest, "non_embedding", [], 0)


def test_a_known_law_is_found_again() -> None:
    found = fit(points_of(make_runs()[:-1], "non_embedding"), draws=5, seed=0)
    np.testing.assert_allclose(found.law, TRUE, rtol=1e-5)
    np.testing.assert_allclose(found.draws, [TRUE] * 5, rtol=1e-4)  # without noise weights change nothing
    assert np.abs(found.residuals).max() < 1e-8


def test_the_slope_is_that_of_the_value() -> None:
    problem, weights = _Problem(points_of(make_runs(0.01), "total")), np.linspace(0.5, 2, 10)
    for theta in problem.starts()[::17]:
        steps = 1e-6 * np.eye(5)
        numeric = [
            (problem._value(theta + h, weights)[0] - problem._value(theta - h, weights)[0]) / 2e-6 for h in steps
        ]
        np.testing.assert_allclose(problem._value(theta, weights)[1], numeric, rtol=1e-5, atol=1e-3)


def test_one_bad_run_hardly_moves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Huber's loss: a run that went wrong counts by its sign. With squares it would not."""
    points = points_of(make_runs(), "non_embedding")
    points.loss[4] *= 1.1
    law = fit(points, draws=1, seed=0).law
    assert abs(law.a - TRUE.a) < 5e-3  # the others bend by less than DELTA each
    assert abs(law.b - TRUE.b) < 5e-3
    monkeypatch.setattr("lmkit.plan.scaling.fit.DELTA", 1.0)
    squares = fit(points, draws=1, seed=0).law
    assert max(abs(squares.a - TRUE.a), abs(squares.b - TRUE.b)) > 0.05


def test_intervals_cover() -> None:
    """90 % intervals of 30 runs with 1 % of noise; at 90 % fewer than 13 of 20 come up once in 400 times."""
    rng, covered, widths = np.random.default_rng(1), 0, []
    params = np.repeat(np.geomspace(2e4, 2e6, 6), 5)
    tokens = params * np.tile([2, 6, 20, 60, 200], 6)
    for _ in range(10):
        loss = TRUE.loss(params, tokens) * np.exp(0.01 * rng.standard_normal(30))
        found = fit(Points(params, tokens, loss), draws=40, seed=0)
        for name in "ab":
            low, high = found.interval([getattr(law, name) for law in found.draws])
            covered += low <= getattr(TRUE, name) <= high
            widths.append(high - low)
    assert covered >= 13
    assert max(widths) < 0.3, "an interval that says nothing covers everything"


def test_the_best_use_of_flops() -> None:
    for flops in (1e12, 1e20):
        params, tokens = TRUE.best(flops)
        assert math.isclose(6 * params * tokens, flops)
        for factor in (0.97, 1.03):
            assert TRUE.loss(params, tokens) < TRUE.loss(params * factor, tokens / factor)
    grown = TRUE.best(1e20)[0] / TRUE.best(1e12)[0]
    assert math.isclose(math.log(grown) / math.log(1e8), 0.4 / 0.75)
    assert math.isclose(TRUE.size_exponent, 0.4 / 0.75)


@pytest.mark.parametrize(
    ("runs", "number", "held_out"), [(7, None, 1), (6, None, 0), (10, 2, 2), (10, 0, 0), (3, 5, 3)]
)
def test_what_is_held_out(runs: int, number: int | None, held_out: int) -> None:
    ladder = make_runs()[:runs]
    fitted, rest = divide(ladder, number)
    assert (len(fitted), len(rest)) == (runs - held_out, held_out)
    assert all(run.flops > max((one.flops for one in fitted), default=0) for run in rest)


def test_the_held_out_run_has_no_part_in_the_fit() -> None:
    runs = make_runs(0.003)
    honest = result_of(runs)
    worse = result_of([*runs[:-1], runs[-1]._replace(loss=1.2 * runs[-1].loss)])
    assert honest.fit.law == worse.fit.law
    (one,), (other,) = honest.predictions(), worse.predictions()
    assert one.loss == other.loss == float(honest.fit.law.loss(runs[-1].non_embedding, runs[-1].tokens))
    assert one.interval == other.interval
    assert (one.inside, other.inside) == (True, False)
    assert one.interval[0] < one.loss < one.interval[1]
    assert abs(one.run.loss / one.loss - 1) < 0.02


def test_a_bound_is_told() -> None:
    flat = [run._replace(loss=2 + 300 * run.tokens**-0.4) for run in make_runs()]
    assert result_of(flat, draws=1).at_bounds() == ["a"]  # size brings nothing: A is 0, and any exponent does
    floorless = [run._replace(loss=40 * run.non_embedding**-0.2 + 300 * run.tokens**-0.4) for run in make_runs()]
    assert result_of(floorless, draws=1).at_bounds() == ["E"]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Tables, JSON and pictures; its JSON read again gives the same law."""
    file = make_file(tmp_path / "runs.json", make_runs(0.003))
    written = [str(tmp_path / name) for name in ("law.json", "law.svg", "law.html")]
    assert main([file, "--draws", "40", "--json", written[0], "--draw", *written[1:]]) == 0
    text = capsys.readouterr().out
    law = json.loads(Path(written[0]).read_text())
    shown = f"held out: depth6_x4 was to reach {law['runs'][-1]['law']:.4f}"
    assert [words for words in (shown, "of 9 runs", "only 4 runs more", "tokens a") if words not in text] == []
    assert [run["held_out"] for run in law["runs"]] == [False] * 9 + [True]
    assert math.isclose(law["best"][1]["flops"], 10 * 6 * 663552 * 663552 * 4)
    assert main([written[0], "--draws", "40", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == law
    assert main([file, "--draws", "40", "--count", "total", "--flops", "1e15", "--hold-out", "0", "--json", "-"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["law"]["a"]["value"] > law["law"]["a"]["value"]  # tables shrink small models less
    assert [row["flops"] for row in other["best"]] == [1e15]
    assert not any(run["held_out"] for run in other["runs"])
    page = Path(written[2]).read_text()
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "held out: depth6_x4" in page


def test_the_picture() -> None:
    result = result_of(make_runs(0.003, seed=1))
    root = ElementTree.fromstring(draw_svg(result))
    circles = [node for node in root.iter() if node.tag.endswith("circle")]
    dots = [node for node in circles if node.get("class") != "held"]
    assert (len(dots), len(circles)) == (18, 20)  # two panels of nine runs and one
    by_name = {node[0].text: (float(node.get("cx", 0)), float(node.get("cy", 0))) for node in circles[:10]}
    losses = {f"{run.name}: {run.loss:.4f}": run for run in result.runs}
    down = sorted(by_name, key=lambda name: by_name[name][1])
    assert down == sorted(losses, key=lambda name: -losses[name].loss)
    spread = [by_name[name][0] for name in sorted(losses, key=lambda name: losses[name].tokens)]
    assert spread == sorted(spread)
    texts = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert {"N 24.6k", "N 664k", "tokens D", "6 N D"} <= set(texts)
    assert "<script" not in draw_page(result)


@pytest.mark.parametrize(("low", "high"), [(1.4, 1.9), (2.1, 2.2), (1e5, 1e7), (1, 1e30)])
def test_ticks_of_a_logarithmic_axis(low: float, high: float) -> None:
    found = marks(low, high)
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))
    assert low <= found[0] < found[-1] <= high


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = make_runs()
    files = {
        "few": runs[:5],
        "one size": [run._replace(non_embedding=24576) for run in runs],
        "line": [run._replace(tokens=20 * run.non_embedding) for run in runs],
        "others": [*runs[:-1], runs[-1]._replace(same={"text": "abd"})],
    }
    places = {name: make_file(tmp_path / f"{name}.json", some) for name, some in files.items()}
    (tmp_path / "bad.json").write_text('{"runs": [{}]}')
    (tmp_path / "empty").mkdir()
    whole = make_file(tmp_path / "all.json", runs)
    for words, told in (
        ([places["few"]], ["5 runs for a law of 5 parameters", "at least 6"]),
        ([whole, "--hold-out", "5"], ["5 runs for a law of 5", "--hold-out"]),
        ([places["one size"], "--hold-out", "0"], ["1 different sizes", "3"]),
        ([places["line"]], ["tokens go with size"]),
        ([places["others"]], ["cannot be compared", "depth2_x20 and depth6_x4", "text (abc and abd)"]),
        ([str(tmp_path / "bad.json")], ["bad.json is neither"]),
        ([str(tmp_path / "nowhere" / "*")], ["nowhere/*: there is no such run"]),
        ([str(tmp_path / "empty")], ["empty is no finished run: no receipt.json"]),
        ([whole, "--draw", "law.png"], ["law.png", ".svg"]),
        ([whole, "--draws", "3"], ["--draws 3", "20"]),
        ([whole, "--hold-out", "-1"], ["--hold-out -1"]),
        ([whole, "--flops", "0"], ["--flops 0"]),
        ([whole, "--draws", "20", "--json", str(tmp_path / "no" / "x.json")], ["cannot be written"]),
    ):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert [part for part in ["lmkit.plan.scaling:", *told] if part not in error] == []


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seconds, with what train leaves of it."""
    folder = tmp_path_factory.mktemp("law")
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"one two three {number} " * 40)
    words = ["+experiment=scaling_law", "data=text_files", f"data.paths=[{folder}]", f"run.dir={folder / 'run'}"]
    words += ["train.steps=4", "train.batch_size=8", "optim.warmup_steps=1"]
    assert run_verb("train", "lmkit.train.main:train", "about", words) == 0
    return folder / "run"


def change(run: Path, context: Path, name: str, **keys: Any) -> Path:
    """The run's copy with other keys of a JSON or YAML file."""
    context.mkdir()
    for file in ("summary.json", "receipt.json", "config.yaml", "model.yaml"):
        text = (run / file).read_text()
        if file == name:
            tree = yaml.safe_load(text)
            for key, value in keys.items():
                *path, last = key.split("__")
                node = tree
                for part in path:
                    node = node[part]
                node[last] = value
            text = json.dumps(tree) if name.endswith("json") else yaml.safe_dump(tree)  # YAML takes 1e-05 for text
        (context / file).write_text(text)
    return context


def test_a_run_is_read(a_run: Path, tmp_path: Path) -> None:
    run, summary = read_run(a_run), json.loads((a_run / "summary.json").read_text())
    receipt = json.loads((a_run / "receipt.json").read_text())
    assert run.total == receipt["model"]["params"]
    assert run.non_embedding == run.total - 2 * 257 * 32
    assert run.non_embedding == 12 * 2 * 32**2 + 2 * (2 * 32 + 2 * 16) + 32  # matrices, and norms
    assert (run.tokens, run.loss) == (4 * 8 * 128, summary["eval/loss"])
    assert run.flops == receipt["model"]["flops_per_token"] * run.tokens
    (part,) = receipt["data"].values()
    assert run.epochs == run.tokens / part["train"]["tokens"]
    link = change(a_run, tmp_path / "other", "summary.json", **{"eval/loss": 2.0})
    (a_run.parent / "run.log").write_text("what a glob meets, too")
    assert [one.loss for one in read_runs([str(a_run), str(link), f"{a_run.parent}/r*"])] == [run.loss, 2.0]


@pytest.mark.parametrize(
    ("file", "keys", "told"),
    [
        ("summary.json", {"status": "stopped by SIGTERM"}, ["not finished", "stopped by SIGTERM", "resume it"]),
        ("summary.json", {"eval/loss": None}, ["no loss on held-out data"]),
        ("summary.json", {"eval/loss": math.inf}, ["no loss on held-out data"]),
        ("config.yaml", {"init_from": "runs/x"}, ["init_from=runs/x", "from scratch"]),
        ("model.yaml", {"model__num_experts": 4}, ["model.num_experts=4"]),
    ],
)
def test_runs_that_are_no_point(a_run: Path, tmp_path: Path, file: str, keys: dict, told: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        read_run(change(a_run, tmp_path / "changed", file, **keys))
    assert [part for part in told if part not in str(error.value)] == [], error.value


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("receipt.json", "data__text_files__text_sha256", "other"),
        ("receipt.json", "data__text_files__tokenizer_sha256", "other"),
        ("config.yaml", "data__seq_len", 64),
        ("config.yaml", "data__fold", 3),
        ("config.yaml", "objective__kind", "masked_lm"),
    ],
)
def test_runs_that_cannot_be_compared(a_run: Path, tmp_path: Path, file: str, key: str, value: Any) -> None:
    keys = {key.replace("text_files", next(iter(json.loads((a_run / "receipt.json").read_text())["data"]))): value}
    other = change(a_run, tmp_path / "changed", file, **keys)
    with pytest.raises(ConfigError, match="cannot be compared") as error:
        read_runs([str(a_run), str(other)])
    assert key.split("__")[-1] in str(error.value)
    assert str(value) in str(error.value)


def test_tied_tables_count_once() -> None:
    config = {"vocab_size": 100, "num_layers": 1, "num_heads": 2, "embed_dim": 8}
    (untied, two), (tied, one) = (count(GPTConfig(**config, tie_embeddings=tie)) for tie in (False, True))
    assert (two, one) == (1600, 800)
    assert untied - two == tied - one


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(STUDY / "run.py")))


def test_the_dial(study: SimpleNamespace) -> None:
    """Twice the depth: twice the width and the heads, half the rate, eight times the parameters and the steps."""
    two, four = study.Rung(2, 10), study.Rung(4, 10)
    assert (four.width, four.heads) == (2 * two.width, 2 * two.heads)
    assert (four.matrices, four.steps) == (8 * two.matrices, 8 * two.steps)
    one, other = (compose(rung.keys()) for rung in (two, four))
    assert other.model.embed_dim == 2 * one.model.embed_dim  # type: ignore[attr-defined]
    assert one.optim.learning_rate == other.optim.learning_rate  # of embeddings and norms
    assert one.optim.rates == {"*.kernel": 1.0, "head": 1.0}
    assert other.optim.rates == {"*.kernel": 0.5, "head": 0.5}
    assert other.data.seq_len == study.CONTEXT
    assert other.optim.warmup_steps == other.train.steps // 10


def test_the_dial_knows_its_size(study: SimpleNamespace) -> None:
    for rung in study.ladder(study.LADDER):
        experiment = compose(rung.keys())
        model = experiment.model
        model.vocab_size = study.VOCABULARY  # type: ignore[attr-defined]
        total, tables = count(model)
        assert rung.matrices == pytest.approx(total - tables, rel=0.02)  # what norms have beside them
        tokens = experiment.train.steps * experiment.train.batch_size * experiment.data.seq_len
        assert 0 <= tokens / rung.matrices - rung.ratio < 0.01 * rung.ratio + 0.1


def test_rates_reach_what_they_are_for(study: SimpleNamespace) -> None:
    """All matrices and the head; no norm, no embedding."""
    from lmkit.config.patterns import matching
    from lmkit.models import build_model
    from lmkit.nn.param import param_specs
    from lmkit.nn.tree import flat

    nnx = pytest.importorskip("flax.nnx")
    config = GPTConfig(vocab_size=257, num_layers=2, num_heads=2, embed_dim=32, qk_norm=True)
    state = nnx.state(nnx.eval_shape(lambda: build_model(config, rngs=nnx.Rngs(0))), nnx.Param)
    specs = flat(param_specs(state))
    reached = set(matching("optim.rates", compose(study.Rung(2, 1).keys()).optim.rates, specs))
    assert reached == {path for path, spec in specs.items() if spec.num_in} | {"head.table"}


def test_the_ladder_goes_on_where_it_was(study: SimpleNamespace, tmp_path: Path, monkeypatch, capsys) -> None:
    """Finished runs are not repeated, a run that fails ends it, the cheapest comes first."""
    rungs, begun = study.ladder("3x10,2x20,4x3"), []

    def pretend(words: list[str], **_) -> SimpleNamespace:
        folder = Path(next(word for word in words if word.startswith("run.dir=")).removeprefix("run.dir="))
        begun.append(folder.name)
        if folder.name == "depth4_x3":
            return SimpleNamespace(returncode=3)
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"status": "finished", "eval/loss": 2.0}))
        assert "tracker=none" in words
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", pretend)
    for expected in (["depth2_x20", "depth3_x10", "depth4_x3"], ["depth4_x3"]):
        begun.clear()
        with pytest.raises(SystemExit, match="depth4_x3 ended with status 3"):
            study.climb(rungs, tmp_path, ["tracker=none"])
        assert begun == expected
    assert "ETA" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["3y", "0x5", "3x0", "2x20,"])
def test_rungs_that_cannot_be(words: str) -> None:
    done = subprocess.run([sys.executable, str(STUDY / "run.py"), "--ladder", words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "DEPTHxRATIO" in done.stderr or "above 0" in done.stderr


def test_the_figures_of_the_study(capsys: pytest.CaptureFixture) -> None:
    """Its runs, fitted again, give the law that its files tell of, and README tells the same."""
    told, readme = json.loads((STUDY / "law.json").read_text()), (STUDY / "README.md").read_text()
    assert main([str(STUDY / "law.json"), "--draws", "20", "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    for name, one in told["law"].items():
        assert one["value"] == pytest.approx(again["law"][name]["value"], rel=1e-3), name
        assert f"{one['value']:.3g}" in readme, name
    held_out = told["runs"][-1]
    assert held_out["held_out"]
    assert held_out["flops"] == max(run["flops"] for run in told["runs"])
    assert [run["name"] for run in told["runs"] if f"{run['loss']:.4f} | {run['law']:.4f}" not in readme] == []
    picture = (STUDY / "law.svg").read_text()
    assert all(f"{run['name']}: {run['loss']:.4f}" in picture for run in told["runs"])
