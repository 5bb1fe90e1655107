"""From scored tasks to the pages' own words."""

import math

import numpy as np

from lmkit.evaluate.own import Judged
from lmkit.evaluate.suite import Suite
from lmkit.harness.items import Item, calibration
from lmkit.pages.evaluation import Shown, TaskPage

_MOST = 100  # items of a list


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
    return TaskPage(name, figures, sum(judged.examples.sizes), bins, error, [], [], [])


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
        share = one.changed / max(one.items, 1)
        rows.append((f"Changed by {kind}", f"{share:.1%}", f"of the answers; accuracy then {one.accuracy:.4f}"))
    if name in suite.found:
        clean = clean_items(suite, name, items)
        score = f"{np.mean([one.score for one in clean]):.4f}" if clean else "none left"
        rows.append(("Clean items", score, f"{len(clean):,} of {len(items):,} are not in evaluate.against"))
    return rows


def clean_items(suite: Suite, name: str, items: list[Item]) -> list[Item]:
    """Those that were not found in evaluate.against."""
    return [one for one in items if one.number not in suite.found[name].found]
