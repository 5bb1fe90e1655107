"""The pages of an evaluation: what is known is on them, what is text stays text."""

import math

from lmkit.pages.evaluation import ComparedTask, Shown, TaskPage, draw_comparison, draw_evaluation

NASTY = "<script>alert(1)</script> & more"


def test_a_page_of_a_task() -> None:
    shown = [Shown(7, 0.93, NASTY, "said", "truth")]
    bins = [(0.25, 0.5, 4), (0.95, 0.9, 40)]
    task = TaskPage("pick", [("acc", 0.25, 0.09), ("ppl", 3e7, math.nan)], 44, bins, 0.07, shown, shown,
                    [("a", 12, 0.5)], [("Clean items", "0.3000", "40 of 44")])  # fmt: skip
    page = draw_evaluation("model", "44 items", [task], ["cut from the left"])
    assert NASTY not in page
    for part in ("0.2500", "± 0.09", "3e+07", "0.0700", "confidence 0.95, accuracy 0.90, 40 items", "Clean items",
                 "&lt;script&gt;", "cut from the left"):  # fmt: skip
        assert part in page, part
    assert "nan" not in page
    bare = draw_evaluation("model", "", [TaskPage("roll", [("ppl", 2.0, math.nan)], 3, [], math.nan, [], [], [])], [])
    assert "Confidence" not in bare


def test_a_comparison() -> None:
    one = ComparedTask("pick", "acc", 10, (0.2, 0.5), 0.3, 0.1, 0.5, 0.012, "B is better", [(3, NASTY, "x", "y")])
    page = draw_comparison("Comparison", "95 %", [("runs/a", "runs/b", [one])])
    assert NASTY not in page
    for part in ("+0.3000", "+0.1000 to +0.5000", "0.012", "B is better", "items on which they differ (1)", "a and b"):
        assert part in page, part
