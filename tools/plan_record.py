"""The plan's speed beside published training throughputs, and the constants of a platform that explain them best.

    python tools/plan_record.py          the table in docs/plan.md: plan and published, and the error on held-out points
    python tools/plan_record.py --fit    prints the constants that lmkit/config/sections/plan.py should have

The points and their sources are in experiments/benchmarks/plan_record.yaml. No accelerator is needed.

Three constants a platform are fitted: plan.compute_share, plan.memory_share and plan.exposed_share. The fit is the
least mean of |log(planned / published)|, every series with the same weight. A series is what one publisher measured on
one kind of device. For the column "held out" the constants are fitted without a point's whole series.
"""

import argparse
import dataclasses
import math
import statistics
from pathlib import Path
from typing import NamedTuple

import yaml
from scipy.optimize import minimize

from lmkit.config.entry import compose
from lmkit.config.sections.plan import assumed
from lmkit.cost.estimate import Estimate, estimate
from lmkit.cost.terms import Terms, terms_of
from lmkit.parallel.devices import setup_cpu

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "experiments" / "benchmarks" / "plan_record.yaml"
PAGE = ROOT / "docs" / "plan.md"
START, END = "<!-- tools/plan_record.py -->\n", "<!-- end of the record -->\n"
FITTED = ("compute_share", "memory_share", "exposed_share")
_LEAST = 0.05  # of a constant: 0 would mean that it is not set
_BASE = "+experiment=llama3_8b"  # for the optimizer and the data; the model's keys replace its own


@dataclasses.dataclass(frozen=True)
class Point:
    """One published run."""

    source: str
    number: int  # of the source in the file
    unit: str
    words: tuple[str, ...]  # what `lmkit.plan` would be called with
    model: str
    hardware: str
    mesh: str
    rows: int
    length: int
    remat: str
    figure: float
    more: str


class Result(NamedTuple):
    """What the plan says of a point, and what was published: tokens/s of a device."""

    planned: float
    published: float
    terms: Terms
    tokens: float  # of a device in a step
    platform: str
    series: tuple[str, str]

    def ratio(self, factors: dict[str, float]) -> float:
        """Planned over published with these constants."""
        return self.tokens / self.terms.total(factors) / self.published


def points() -> list[Point]:
    """All of the file."""
    record, found = yaml.safe_load(RECORD.read_text()), []
    for number, source in enumerate(record["sources"]):
        for model, hardware, mesh, rows, micro, length, remat, figure, *more in source["points"]:
            axes = [f"mesh.{axis}" for axis in mesh.split()]
            rest = [f"mesh.{axis}=1" for axis in ("data", "fsdp") if f"{axis}=" not in mesh]
            keys = [*record["models"][model].split(), *source.get("keys", "").split(), *" ".join(more).split()]
            words = (
                _BASE, f"hardware={hardware}", *keys, f"model.max_seq_len={length}", f"model.remat={remat}", *rest,
                *axes, f"train.batch_size={rows}", f"train.accumulate_steps={micro}", f"data.seq_len={length}",
            )  # fmt: skip
            shown = "float8" if any("float8" in word for word in keys) else ""
            found.append(Point(
                source["name"], number, source["unit"], words, model, hardware, mesh, rows, length, remat, figure, shown
            ))  # fmt: skip
    return found


def result_of(point: Point) -> Result:
    """Plans a point. A user's own calibration has no part in it: every constant is set."""
    experiment = compose(list(point.words))
    plan = dataclasses.replace(experiment.plan, **assumed(experiment.hardware.platform))
    setup_cpu(experiment.run)
    found = estimate(dataclasses.replace(experiment, plan=plan))
    context = found.context
    tokens, name = context.tokens_per_step / context.num_devices, context.experiment.hardware.name
    return Result(
        tokens / found.step.total, _published(point, found), terms_of(found), tokens,
        context.experiment.hardware.platform, (point.source, name.removesuffix("_40gb")),
    )  # fmt: skip


def _published(point: Point, found: Estimate) -> float:
    """Tokens/s of a device, of whatever the source has."""
    context = found.context
    if point.unit == "tokens":
        return point.figure
    if point.unit == "sec":
        return context.tokens_per_step / context.num_devices / point.figure
    part = next(iter(context.experiment.model.towers().values()))
    layers, width, length, vocab = part.num_layers, part.embed_dim, point.length, part.vocab_size
    if point.unit == "megatron":
        flops = 96 * layers * width**2 * (1 + length / (6 * width) + vocab / (16 * layers * width))
    else:
        products = context.blueprint.num_params - vocab * width
        flops = 6 * products + 12 * layers * length * part.num_heads * part.head_size
    return point.figure * 1e12 / flops


def fit(results: list[Result]) -> dict[str, float]:
    """The constants of a platform that explain its results best."""
    start = assumed(results[0].platform)
    sizes = {series: sum(one.series == series for one in results) for series in {one.series for one in results}}

    def factors(values) -> dict[str, float]:
        return start | {name: min(max(value, _LEAST), 1.0) for name, value in zip(FITTED, values, strict=True)}

    def error(values) -> float:
        outside = sum(max(_LEAST - value, value - 1, 0) for value in values)
        off = [abs(math.log(one.ratio(factors(values)))) / sizes[one.series] for one in results]
        return sum(off) / len(sizes) + outside

    tries = [minimize(error, x, method="Nelder-Mead") for x in ((0.8, 0.6, 0.4), (0.95, 0.8, 0.1))]
    best = min(tries, key=lambda one: one.fun)
    return {name: value for name, value in factors(best.x).items() if name in FITTED}


def held_out(results: list[Result]) -> list[float]:
    """Planned over published of each, by constants that were fitted without its series."""
    ratios = {}
    for platform, series in {(one.platform, one.series) for one in results}:
        others = [one for one in results if one.platform == platform and one.series != series]
        ratios[series] = assumed(platform) | fit(others)
    return [one.ratio(ratios[one.series]) for one in results]


def row(point: Point, found: Result) -> str:
    """A line of the table, up to the held-out column."""
    remat = f"{point.remat}, {point.more}" if point.more else point.remat
    return (
        f"| {point.source} [{point.number + 1}] | {point.model} | {point.hardware} | {point.mesh} | {point.rows:,} x "
        f"{point.length:,} | {remat} | {found.published:,.0f} | {found.planned:,.0f} | "
        f"{found.planned / found.published:.2f} |"
    )


def summary(results: list[Result], held: list[float]) -> list[str]:
    """Errors by platform, with the constants as they are and held out."""
    lines = ["| | points | series | median error | worst | held out: median | worst | above 25 % |", "|---" * 8 + "|"]
    for name, chosen in (("gpu", ["gpu"]), ("tpu", ["tpu"]), ("all", ["gpu", "tpu"])):
        here = [(one, ratio) for one, ratio in zip(results, held, strict=True) if one.platform in chosen]
        errors = [abs(one.planned / one.published - 1) for one, _ in here]
        out = [abs(ratio - 1) for _, ratio in here]
        lines.append(
            f"| {name.upper() if len(chosen) == 1 else name} | {len(here)} | {len({one.series for one, _ in here})} | "
            f"{statistics.median(errors):.1%} | {max(errors):.0%} | {statistics.median(out):.1%} | {max(out):.0%} | "
            f"{sum(one > 0.25 for one in out)} |"
        )
    return lines


def page(all_points: list[Point], results: list[Result]) -> str:
    """What stands in docs/plan.md between the marks."""
    held = held_out(results)
    lines = [*summary(results, held), ""]
    lines += ["| source | model | hardware | mesh | rows x tokens | remat | published | plan | ratio | held out |"]
    lines += ["|---" * 10 + "|"]
    lines += [
        f"{row(point, found)} {ratio:.2f} |" for point, found, ratio in zip(all_points, results, held, strict=True)
    ]
    sources = yaml.safe_load(RECORD.read_text())["sources"]
    lines += ["", *(f"{n + 1}. {one['url']}: {one['note']}." for n, one in enumerate(sources))]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="print the constants, and leave the page alone")
    args = parser.parse_args()
    all_points = points()
    results = [result_of(point) for point in all_points]
    if args.fit:
        for platform in ("gpu", "tpu"):
            found = fit([one for one in results if one.platform == platform])
            print(platform, ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
        return
    text = PAGE.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    found = page(all_points, results)
    PAGE.write_text(before + START + found + END + after)
    print(found)


if __name__ == "__main__":
    main()
