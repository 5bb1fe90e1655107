"""The search: it finds what trying by hand finds, and what it writes can be trained."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from lmkit.config import ConfigError
from lmkit.config.entry import compose
from lmkit.config.experiment import Experiment
from lmkit.config.sections.model import Remat
from lmkit.cost.estimate import Estimate, estimate
from lmkit.plan import search as module
from lmkit.plan.advice import with_remat
from lmkit.plan.compiled import Compiled
from lmkit.plan.search import as_experiment, confirmed, search


def wanted(*words: str) -> Experiment:
    return compose(["+experiment=llama3_8b", "hardware=h100_64", "train.batch_size=128", *words])


def test_nothing_that_fits_is_faster() -> None:
    """Every mesh over three axes, policy and number of micro-batches, tried one by one."""
    experiment = wanted("plan.axes=[data,fsdp,tensor]")
    best = search(experiment).best[0].estimate
    assert best.fits
    speeds = []
    for data, fsdp in itertools.product((1, 2, 4, 8, 16, 32, 64), repeat=2):
        if data * fsdp > 64:
            continue
        mesh = dataclasses.replace(experiment.mesh, data=data, fsdp=fsdp, tensor=64 // data // fsdp)
        for remat, micro in itertools.product((Remat.none, Remat.dots, Remat.names, Remat.full), (1, 2, 4, 8, 16, 32)):
            try:
                changed = dataclasses.replace(
                    experiment, mesh=mesh, model=with_remat(experiment.model, remat),
                    train=dataclasses.replace(experiment.train, accumulate_steps=micro),
                )  # fmt: skip
                other = estimate(changed, best.context.blueprint)
            except ConfigError:
                continue
            speeds += [other.tokens_per_sec] if other.fits else []
    assert best.tokens_per_sec == pytest.approx(max(speeds))


def test_what_is_found_is_what_its_keys_say() -> None:
    found = search(wanted()).best[3]
    again = estimate(wanted(*(f"{key}={value}" for key, value in found.keys.items())))
    assert again.memory.peak == found.estimate.memory.peak
    assert again.step == found.estimate.step


def test_the_file_is_an_experiment(tmp_path: Path) -> None:
    found = search(wanted()).best[0]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "found.yaml").write_text(as_experiment(found))
    composed = compose([
        "+experiment=[llama3_8b,found]", "hardware=h100_64", "train.batch_size=128",
        f"hydra.searchpath=[file://{tmp_path}]",
    ])  # fmt: skip
    assert estimate(composed).tokens_per_sec == found.estimate.tokens_per_sec


def test_where_nothing_fits_the_closest_is_told() -> None:
    found = search(compose(["+experiment=gpt3_175b", "hardware=h100_8", "train.batch_size=64"]))
    assert found.best == []
    assert found.closest.memory.peak > found.closest.limit
    assert found.closest.context.experiment.model.remat is Remat.full  # type: ignore[union-attr]


def test_experts_and_slices_keep_their_axes() -> None:
    sparse = search(compose(["+experiment=mixtral_8x7b", "hardware=h100_64", "train.batch_size=64"]))
    assert any(one.estimate.context.sizes["expert"] > 1 for one in sparse.best)
    pods = search(compose(["+experiment=gpt3_6b7", "hardware=v5p_128", "mesh.dcn.data=2"]))
    assert {one.estimate.context.experiment.mesh.dcn.data for one in pods.best} == {2}
    assert {one.estimate.context.num_devices for one in pods.best} == {128}


def test_what_the_compiler_refuses_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(wanted())
    seen: list[Estimate] = []

    def refuse_first(context: object) -> Compiled:
        seen.append(next(one.estimate for one in found.best if one.estimate.context is context))
        return Compiled(1.0, 0, 0, 1.0, 0, [], [], "too big" if len(seen) == 1 else "")

    monkeypatch.setattr(module, "compiled_plan", refuse_first)
    left = confirmed(found, 2)
    assert len(seen) == 3
    assert [one.estimate for one in left.best[:2]] == seen[1:]
    assert len(left.best) == len(found.best) - 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plan.axes=[date]"], "date is no mesh axis. Did you mean 'data'?"),
        (["plan.axes=[tensor]"], "mesh.tensor=64"),
        (["hardware=auto"], "name those that are meant"),
        (["hardware=h100"], "how many"),
    ],
)
def test_what_cannot_be_searched_is_told(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        search(wanted(*words))
