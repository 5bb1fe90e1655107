"""From scored tasks to the pages' own words."""

import math

import numpy as np

from lmkit.evaluate.own import Judged
from lmkit.evaluate.suite import Suite
from lmkit.harness.items import Item, calibration
from lmkit.metrics.bootstrap import Figure
from lmkit.pages.evaluation import Shown, TaskPage

_MOST = 100  # items of a list
_CHANGED = "changed_by_"


def task_pages(suite: Suite) -> list[TaskPage]:
    """A page's part for each task; groups stand in the table alone."""
    return [_page(suite, name, items) for name, (_, items) in suite.items.items()]


def own_page(judged: Judged, name: str) -> TaskPage:
    """The part of a model's own task; of classes with their calibration."""
    figures = [(metric, one.value, one.stderr) for metric, one in judged.figures.items()]
    columns, bins, error = judged.examples.columns, [], float("nan")
    if "confidence" in columns:
        real = columns["weight"] > 0
        bins, error = calibration(columns["confidence"][real], (columns["predicted"] == columns["labels"])[real])
    kinds = [metric.removeprefix(_CHANGED) for metric in judged.figures if metric.startswith(_CHANGED)]
    more = [_stability(kind, judged.figures) for kind in kinds]
    return TaskPage(name, figures, sum(judged.examples.sizes), bins, error, [], [], [], more)


def _page(suite: Suite, name: str, items: list[Item]) -> TaskPage:
    figures = [(metric, one.value, one.stderr) for metric, one in suite.figures()[name].items()]
    bins, error = calibration(np.array([one.confidence for one in items]), np.array([one.score for one in items]))
    wrong = sorted((one for one in items if one.score == 0 and math.isfinite(one.confidence)),
                   key=lambda one: -one.confidence)  # fmt: skip
    hardest = sorted((one for one in items if math.isfinite(one.truth_share)), key=lambda one: one.truth_share)
    return TaskPage(
        name, figures, len(items), bins, error, [_shown(one, one.confidence) for one in wrong[:_MOST]],
        [_shown(one, one.truth_share) for one in hardest[:_MOST]], _categories(items), _more(suite, name, items),
    )  # fmt: skip


def _shown(one: Item, share: float) -> Shown:
    return Shown(one.number, share, one.text, one.said, one.truth)


def _categories(items: list[Item]) -> list[tuple[str, int, float]]:
    groups: dict[str, list[float]] = {}
    for one in items:
        if one.category:
            groups.setdefault(one.category, []).append(one.score)
    return [(name, len(scores), float(np.mean(scores))) for name, scores in sorted(groups.items())]


def _more(suite: Suite, name: str, items: list[Item]) -> list[tuple[str, str, str]]:
    rows = []
    for kind, one in suite.changed.get(name, {}).items():
        if one.figures:
            rows.append(_stability(kind, one.figures))
    if name in suite.found:
        clean = suite.clean(name)
        score = f"{np.mean([one.score for one in clean]):.4f}" if clean else "none left"
        rows.append(("Clean items", score, f"{len(clean):,} of {len(items):,} are not in evaluate.against"))
    return rows


def _stability(kind: str, figures: dict[str, Figure]) -> tuple[str, str, str]:
    share, then = (figures[f"{name}{kind}"] for name in (_CHANGED, "accuracy_with_"))
    span = f" ({share.low:.1%} to {share.high:.1%})" if math.isfinite(share.low) else ""
    return f"Changed by {kind}", f"{share.value:.1%}", f"of the answers{span}; accuracy then {then.value:.4f}"
