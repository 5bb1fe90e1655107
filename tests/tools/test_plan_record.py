"""The public record: the page is what the tool says, and the constants are those that the points give."""

import statistics

import pytest

from helpers import ROOT, load_tool
from lmkit.config.sections.plan import FACTORS, assumed

RECORD = load_tool("plan_record")
POINTS = RECORD.points()
PAGE = (ROOT / "docs" / "plan.md").read_text()


def test_every_point_has_a_source_and_a_row() -> None:
    assert len(POINTS) >= 15
    assert len({point.source for point in POINTS}) >= 5
    for point in POINTS:
        assert f"| {point.source} [{point.number + 1}] | {point.model} | {point.hardware} | {point.mesh} |" in PAGE
        assert f"\n{point.number + 1}. " in PAGE


@pytest.mark.parametrize("number", [0, 30, 40, 62])  # a unit each: tokens, megatron, sec, maxtext
def test_the_page_says_what_the_plan_says(number: int) -> None:
    found = RECORD.result_of(POINTS[number])
    assert RECORD.row(POINTS[number], found) in PAGE
    assert found.ratio(assumed(found.platform)) == pytest.approx(found.planned / found.published)


def test_published_figures_become_tokens() -> None:
    """AXLearn: 1,024 rows of 4,096 in 2.5 s on 256. Narayanan et al.: 137 TFLOP/s, 8 FLOPs a parameter and token."""
    seconds, tflops = (
        next(point for point in POINTS if (point.source, point.model, point.hardware) == key)
        for key in (("AXLearn", "llama2_7b", "v5p_256"), ("Megatron 2021", "megatron_1b7", "a100_32"))
    )
    assert RECORD.result_of(seconds).published == pytest.approx(1024 * 4096 / 2.5 / 256)
    assert RECORD.result_of(tflops).published == pytest.approx(137e12 / (8 * 1.65e9), rel=0.15)  # and attention


def test_the_constants_of_the_page_are_those_of_the_code() -> None:
    for name in FACTORS:
        shown = " | ".join(f"{assumed(platform)[name]:g}" for platform in ("gpu", "tpu", "cpu"))
        assert f"| `plan.{name}` | {shown} |" in PAGE


def test_a_fit_finds_the_constants_that_made_its_points() -> None:
    truth = assumed("tpu") | {"compute_share": 0.9, "memory_share": 0.5, "exposed_share": 0.5}
    terms = [(1.0, 0.1, 0.0), (1.0, 0.9, 0.1), (1.0, 0.3, 0.9), (0.5, 0.6, 0.3), (1.0, 0.2, 0.5)]
    made = [
        RECORD.Result(0.0, 1 / RECORD.Terms(*one, 0.0).total(truth), RECORD.Terms(*one, 0.0), 1.0, "tpu", ("a", str(n)))
        for n, one in enumerate(terms)
    ]
    assert RECORD.fit(made) == pytest.approx({name: truth[name] for name in RECORD.FITTED}, rel=0.02)
    # one series that is twice as slow weighs as one, however many points it has
    slow = made[0]._replace(published=made[0].published / 2, series=("b", "x"))
    found = RECORD.fit([*made, *[slow] * 20])
    assert statistics.median(abs(one.ratio(truth | found) - 1) for one in made) < 0.05


@pytest.mark.slow
def test_the_whole_page_and_the_fit_are_current() -> None:
    results = [RECORD.result_of(point) for point in POINTS]
    assert RECORD.START + RECORD.page(POINTS, results) + RECORD.END in PAGE
    for platform in ("gpu", "tpu"):
        found = RECORD.fit([one for one in results if one.platform == platform])
        assert found == pytest.approx({name: assumed(platform)[name] for name in RECORD.FITTED}, abs=0.03)
    held = RECORD.held_out(results)
    assert statistics.median(abs(ratio - 1) for ratio in held) < 0.1
