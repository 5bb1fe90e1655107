"""The run report: whatever the files hold, a page comes out that shows it, safely and from nothing but itself."""

import json
import math
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmkit.pages.chart import MOST_POINTS, Chart, Series, compact, exact, thin, ticks, with_mean, x_range, y_range
from lmkit.pages.figures import charts_of, confusion_table
from lmkit.train.report import read_record, write_report

EVIL = "</pre></script><script>document.title='owned'</script><img src=x onerror='document.title=1'> https://a.bc"
CHROMIUM = shutil.which("chromium")

RECEIPT = {"run": {"name": "gpt_small", "started": "2026-11-22T06:00:00"}, "model": {"params": 2_600_000}}
RECEIPT |= {"expected": {"wall_sec": 200.0, "memory_bytes": 2**30, "tokens_per_sec": 7000.0}}
RECEIPT |= {"devices": {"kind": "cpu", "count": 1}, "git": {"commit": "1118403", "dirty": True}}
SUMMARY = {"eval/loss": 2.5, "eval/bits_per_byte": 1.1625, "steps": 50, "tokens": 26_000_000, "status": "finished"}
SUMMARY |= {"wall_sec": 210.0, "tokens_per_sec": 6900.0, "peak_memory_bytes": 2**29}


def train_row(step: int, loss: float | None) -> dict:
    return {"step": step, "time": 1e9 + step, "train/loss": loss, "train/tokens_per_sec": 7000.0}


def eval_row(step: int, loss: float | None) -> dict:
    return {"step": step, "time": 1e9 + step, "eval/loss": loss, "eval/bits_per_byte": loss and loss / 2}


METRICS = [train_row(step, 100 / step) for step in range(10, 60, 10)] + [eval_row(50, 2.6)]
SAMPLES = [{"step": step, "prompt": "Once", "text": f" text of {step}"} for step in (10, 20)]
SAMPLES += [{"step": 30, "prompt": "Once", "text": "Once text of 30"}]  # with its prompt


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_run(folder: Path, **changed: str | None) -> Path:
    """A run directory; a changed file is named by its stem, and None leaves it out."""
    files = {"config.yaml": "model:\n  width: 256\n", "metrics.jsonl": lines(METRICS), "samples.jsonl": lines(SAMPLES)}
    files |= {"receipt.json": json.dumps(RECEIPT), "summary.json": json.dumps(SUMMARY)}
    for name, text in files.items():
        text = changed.get(name.split(".")[0], text)
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


class Page(HTMLParser):
    """What a browser would make of a report: its tags, the text it shows, and its scripts and styles."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.code = "", []
        self.feed(path.read_text(encoding="utf-8"))
        self.points = json.loads(self.code[1], parse_constant=pytest.fail)  # code[0] is the style

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem:
            self.code.append(data)
        else:
            self.text += data

    def paths(self, kind: str) -> list[str]:
        return [a["d"] for tag, a in self.tags if tag == "path" and a["class"].split()[0] == kind]


def report(folder: Path, **changed: str | None) -> Page:
    return Page(write_report(write_run(folder, **changed)))


def metrics_report(folder: Path, rows: list[dict]) -> Page:
    return report(folder, metrics=lines(rows), summary=None)


def test_shows_what_the_files_hold(tmp_path):
    page = report(tmp_path)
    headline = "1.1625|best 1.3000 at step 50|2.5000|perplexity 12.18|26M|10 per parameter|6,900|2.6M"
    expected = "3 min 20 s3 min 30 s0.95|7,0006,9001.01"
    others = "gpt_small finished|2026-11-22 06:00:00 · 1 × cpu|commit 1118403|dirty true|width: 256|Once text of 30"
    assert [shown for shown in f"{headline}|{expected}|{others}".split("|") if shown not in page.text] == []
    assert "Not in this report" not in page.text
    assert re.search(r"30Once text of 30Earlier samples \(2\)\s*Step 20Once text of 20\s*Step 10Once", page.text)
    assert re.findall("(Loss|Throughput|Memory) (?:nats|tokens|GiB)", page.text) == ["Loss", "Throughput"]


@pytest.mark.parametrize("place", ["config", "receipt", "name", "samples", "prompt", "status", "part"])
def test_text_from_files_is_text(tmp_path, place):
    changed = {
        "config": {"config": EVIL},
        "receipt": {"receipt": json.dumps(RECEIPT | {"x": {EVIL: EVIL}})},
        "name": {"receipt": json.dumps(RECEIPT | {"run": {"name": EVIL, "started": EVIL}})},
        "samples": {"samples": lines([{"step": 1, "prompt": "", "text": EVIL}])},
        "prompt": {"samples": lines([{"step": 1, "prompt": EVIL, "text": ""}])},
        "status": {"summary": json.dumps(SUMMARY | {"status": EVIL})},
        "part": {"metrics": lines([{"step": 1, f"eval/{EVIL}/loss": 2.0}])},
    }[place]
    plain, page = report(tmp_path), report(tmp_path, **changed)
    assert EVIL in page.text
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{"type": "application/json", "id": "points"}, {}]
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}


def test_asks_for_nothing_from_outside(tmp_path):
    page = report(tmp_path, samples=lines([{"step": 1, "text": "see https://example.com"}]))
    assert "https://example.com" in page.text
    assert not any("://" in (value or "") for _, attrs in page.tags for value in attrs.values())
    assert not any("://" in code or "@import" in code or "url(" in code for code in page.code)
    links = [item for _, attrs in page.tags for item in attrs.items() if item[0] in ("href", "src", "srcset", "data")]
    assert links == [("href", "data:,")]


def test_samples_of_any_bytes(tmp_path):
    text = "a\x00b\x1b[0m \u202e \ud83d \u2028 end"
    raw = lines([{"step": 1, "text": text}]) + json.dumps({"step": 2, "text": "\u2028 last"}, ensure_ascii=False)
    page = report(tmp_path, samples=raw)
    assert [s for s in ("a\ufffdb\ufffd[0m \ufffd \ufffd \u2028 end", "\u2028 last") if s not in page.text] == []


@pytest.mark.parametrize("name", ["config.yaml", "receipt.json", "metrics.jsonl", "samples.jsonl", "summary.json"])
def test_one_file_missing(tmp_path, name):
    page = report(tmp_path, **{name.split(".")[0]: None})
    assert f"Not in this report: {name}: No such file or directory" in page.text
    shown = {"config.yaml": "width", "receipt.json": "2.6M", "metrics.jsonl": "Throughput", "samples.jsonl": "Once"}
    assert [key for key, text in shown.items() if text not in page.text] == [key for key in shown if key == name]
    assert ("no summary yet" in page.text) == (name == "summary.json")


def test_empty_directory(tmp_path):
    page = Page(write_report(tmp_path))
    assert (f"{tmp_path.name} no summary yet" in page.text, page.points) == (True, {"x": [0.0, 1.0], "charts": []})


def test_cut_files(tmp_path):
    metrics, samples = lines(METRICS)[:-5], lines(SAMPLES)[:-5]
    page = report(tmp_path, metrics=metrics, samples=samples, receipt=json.dumps(RECEIPT)[:-5], summary="")
    assert "Not in this report: receipt.json: not a whole JSON object" in page.text
    assert "unreadable" not in page.text  # a cut last line is no fault
    assert page.points["charts"][0]["series"] == [[[10, 20, 30, 40, 50], [10, 5, 3.33333, 2.5, 2]]]
    assert ("text of 20" in page.text, "text of 30" in page.text) == (True, False)
    # a crash cut a line, and the resumed run wrote on behind it
    page = report(tmp_path, metrics=lines(METRICS[:2]) + '{"step": 30, "tra' + lines(METRICS[2:]) + "[]\n7\n")
    assert "metrics.jsonl: 3 unreadable lines" in page.text
    assert page.points["charts"][0]["series"][0][0] == [10, 20, 40, 50]


def test_not_finite_is_a_gap(tmp_path):
    rows = [train_row(step, loss) for step, loss in [(10, 4.0), (20, 3.0), (30, None), (40, math.nan), (50, 2.0)]]
    page = metrics_report(tmp_path, [{**row, "train/grad_norm": None} for row in rows])
    shapes = [re.sub("[^MLh]", "", path) for path in page.paths("line")]
    assert shapes == ["MLMh", "MLLLL"]  # the loss in two pieces, the throughput in one
    assert page.points["charts"][0]["series"] == [[[10, 20, 30, 40, 50], [4, 3, None, None, 2]]]
    assert "train: 2 of 5 values not finite, the first at step 30." in page.text
    assert ("train/grad_norm: no finite value" in page.text, "Gradient norm" in page.text) == (True, False)


def test_evaluations_only(tmp_path):
    page = metrics_report(tmp_path, [{**eval_row(s, 200 / s), "eval/code/loss": 1.0} for s in (50, 100)])
    assert [chart["series"][0] for chart in page.points["charts"]] == [[[50, 100], y] for y in ([4, 2], [2, 1], [1, 1])]
    assert [mark.count("h0") for mark in page.paths("marks")] == [2, 2, 2]
    assert page.points["x"] == [49.375, 100.625]  # starts late, so not at 0
    assert ("code 1" in page.text, "Throughput" in page.text) == (True, False)


def test_one_row(tmp_path):
    page = metrics_report(tmp_path, [train_row(7, 0.0) | {"memory/host_bytes": 3 * 2**30}])
    assert (page.points["x"], page.paths("line")[0]) == ([6.5, 7.5], "M500.0 200.0h0")
    assert page.points["charts"][2]["series"] == [[[7], [3]]]  # GiB


def test_resumed_run_replaces_what_it_repeats(tmp_path):
    rows = [train_row(s, 9.0) for s in (10, 20, 30)] + [eval_row(30, 9.0)] + [train_row(s, 1.0) for s in (20, 30, 40)]
    page = metrics_report(tmp_path, [*rows, eval_row(30, 2.0)])  # an evaluation is read after the step that follows it
    assert page.points["charts"][0]["series"] == [[[10, 20, 30, 40], [9, 1, 1, 1]], [[30], [2]]]
    page = report(tmp_path, samples=lines([*SAMPLES, {"step": 20, "text": "again"}]))
    assert [s for s in ("text of 10", "text of 20", "text of 30", "again") if s in page.text] == ["text of 10", "again"]


def test_latest_figures_without_a_summary(tmp_path):
    page = metrics_report(tmp_path, [*METRICS, train_row(60, None)])
    assert [s for s in ("1.3000", "2.6000", "7,000", "3 min 20 s––", "50.0 s", "under way") if s not in page.text] == []


def test_long_run_stays_small_and_fast(tmp_path):
    names = [f"train/{n}" for n in ("loss", "accuracy", "grad_norm", "learning_rate", "tokens_per_sec", "mfu")]
    rows = [{"step": s} | {name: 2 + math.sin(s * i) for i, name in enumerate(names, 1)} for s in range(100_000)]
    rows[54_321]["train/loss"] = 77.0
    folder = write_run(tmp_path, metrics=lines(rows))
    start = time.process_time()  # not the clock on the wall: other tests run beside this one
    page = Page(write_report(folder))
    assert time.process_time() - start < 5
    assert (folder / "report.html").stat().st_size < 1_500_000
    assert max(len(steps) for chart in page.points["charts"] for steps, _ in chart["series"]) <= MOST_POINTS
    assert "train: 1 of 100,000 points out of the frame, the farthest 77 at step 54,321." in page.text
    page = report(tmp_path, samples=lines([{"step": step, "text": "x" * 100_000} for step in range(1, 202)]))
    assert "Earlier samples (50 of 200)" in page.text
    assert (folder / "report.html").stat().st_size < 1_500_000


def test_a_failure_leaves_the_old_report(tmp_path, monkeypatch):
    write_run(tmp_path)
    old = write_report(tmp_path).read_text()
    (tmp_path / "config.yaml").write_text("new: 1")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == old
    monkeypatch.undo()
    assert "new: 1" in write_report(tmp_path).read_text()
    assert len(list(tmp_path.iterdir())) == 6  # nothing temporary stays


def test_first_losses_do_not_flatten_the_rest():
    train = Series("train", range(1, 1001), [10.0 if s < 30 else 2 + 2 / s**0.5 for s in range(1, 1001)])
    held_out = Series("held-out", [1, 500, 1000], [11.0, 2.6, 3.4], style="points")
    low, high = y_range(Chart("Loss", "", [train, held_out]))
    assert 1.9 < low < 2.07  # 2.063 is the lowest loss
    assert 3.4 < high < 3.6  # the last evaluation is in view, the first is not
    assert x_range([Chart("", "", [train])]) == (-12.5, 1012.5)  # step 0 in view, and room at both ends
    assert y_range(Chart("Loss", "", [held_out]))[1] > 11  # by itself it sets the range
    few = Series("held-out", [215, 430, 645, 860], [1.82, 1.60, 1.46, 1.40])
    low, high = y_range(Chart("Bits per byte", "", [few]))
    assert low < 1.40, "of four evaluations each is seen"
    assert high > 1.82, "the first, too"
    spike = [Series("x", range(9), [5.0] * 8 + [100.0])]
    assert y_range(Chart("", "", spike, robust=False))[1] > 100
    assert y_range(Chart("", "", spike, zero=True))[0] == 0


@pytest.mark.parametrize("value", [0.0, 3.0, -2e-9, 1e30])
def test_constant_series_has_a_range(value):
    low, high = y_range(Chart("", "", [Series("x", [1, 2], [value, value])]))
    assert low < min(value, *ticks(low, high)) <= max(value, *ticks(low, high)) < high


def test_thin_keeps_ends_and_extremes():
    values: list[float | None] = [math.sin(i) for i in range(5000)]
    values[0], values[1234], values[4321], values[4999] = 0.5, 9.0, -9.0, 0.25
    values[2000:2100] = [None] * 100
    thinned = thin(Series("x", range(5000), values), most=60)
    kept = dict(zip(thinned.steps, thinned.values, strict=True))
    assert len(kept) <= 60
    assert {0: 0.5, 1234: 9.0, 4321: -9.0, 4999: 0.25}.items() <= kept.items()
    assert all(kept[step] == values[step] for step in kept)
    assert None in thin(Series("x", range(5000), [1.0] * 2000 + [None] * 1000 + [1.0] * 2000), most=60).values


def test_mean_is_centred_and_forgets_a_spike():
    straight = Series("x", range(1000), [float(i) for i in range(1000)])
    raw, mean = with_mean(straight, points=10)
    assert (raw.style, mean.label, mean.steps[-1]) == ("faint", "mean of 41 rows", 999)
    assert mean.values[:-1] == [float(step) for step in mean.steps[:-1]]
    assert mean.values[-1] == 989  # of the last 21 rows
    assert with_mean(Series("x", range(1000), [1e38] + [1.0] * 999))[1].values[-1] == 1
    assert with_mean(Series("x", range(49), [1.0] * 49)) == [Series("x", range(49), [1.0] * 49)]


def test_ticks_are_round():
    assert [compact(t) for t in ticks(-10, 20_100, whole=True)] == ["0", "5k", "10k", "15k", "20k"]
    assert [compact(t) for t in ticks(0, 3.2e-4)] == ["0", "1e-4", "2e-4", "3e-4"]
    assert [compact(t) for t in ticks(2.03, 3.4)] == ["2.5", "3"]
    assert ticks(6.5, 7.5, whole=True) == [7]
    assert [compact(v) for v in (0.3, 999, 1500, 2.5e6, -4e9)] == ["0.3", "999", "1.5k", "2.5M", "-4B"]
    assert [exact(v) for v in (0, 2.34567, 6912.4, 2e-7)] == ["0", "2.346", "6,912", "2e-7"]


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """(the document after its scripts ran, what the browser logged)."""
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    extra = f"--disable-sync --disable-component-update --enable-logging=stderr --user-data-dir={profile} --dump-dom"
    done = subprocess.run(
        [CHROMIUM, *quiet.split(), *extra.split(), page.as_uri()], capture_output=True, text=True, timeout=120
    )
    return done.stdout, done.stderr


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not on PATH")
def test_browser_runs_the_page_and_reads_values_out(tmp_path):
    path = write_report(write_run(tmp_path, samples=lines([{"step": 1, "text": EVIL}])))
    document, log = browse(path, tmp_path / "profile")
    assert "<title>gpt_small</title>" in document
    assert '<body class="live">' in document  # the policy of the page let its script run to the end
    assert "CONSOLE" not in log
    # A pointer at three fifths of the first chart, in a copy whose policy lets this script run too.
    move = "new PointerEvent('pointermove', {clientX: box.left + box.width * .6, clientY: box.top + 9})"
    plot = "const plot = document.querySelector('.plot'), box = plot.getBoundingClientRect()"
    script = f"<script>{plot}; plot.dispatchEvent({move})</script>"
    copy = tmp_path / "copy.html"
    copy.write_text(re.sub("<meta http-equiv[^>]*>", "", path.read_text()).replace("</body>", script + "</body>"))
    document = browse(copy, tmp_path / "profile")[0]
    assert len(re.findall(r'<i class="cross" style="visibility: visible; left: 59\.7', document)) == 3
    assert len(re.findall(r'<span class="at" style="visibility: visible; left: 59\.7.*?">34</span>', document)) == 3
    assert re.findall("(train|held-out) <b>(.+?)</b>", document)[:2] == [("train", "3.333"), ("held-out", "2.6")]


def test_classes_are_a_table_shaded_by_share(tmp_path: Path) -> None:
    (tmp_path / "confusion.json").write_text(json.dumps({"labels": ["ham", "<b>"], "confusion": [[9, 1], [0, 5]]}))
    table = confusion_table(read_record(tmp_path).confusion)
    assert "&lt;b&gt;" in table
    assert "<b>" not in table
    cells = re.findall(r"<td([^>]*)>([^<]*)</td>", table)
    assert [text for _, text in cells] == ["9", "1", "90.0%", "", "5", "100.0%"]
    assert [bool(style) for style, _ in cells] == [True, True, False, False, True, False]
    right, wrong = (float(re.findall(r",([\d.]+)\)", cells[n][0])[0]) for n in (0, 1))
    assert right > wrong


@pytest.mark.parametrize("content", ["", "[]", '{"labels": ["a"], "confusion": [[1, 2]]}', '{"labels": []}'])
def test_a_broken_confusion_matrix_is_left_out(content: str, tmp_path: Path) -> None:
    (tmp_path / "confusion.json").write_text(content)
    assert confusion_table(read_record(tmp_path).confusion) == ""
    assert confusion_table({}) == ""


def test_figures_of_every_task_are_drawn() -> None:
    names = {"eval/f1": "Held-out F1", "eval/mse": "Held-out errors", "eval/bleu": "Translation", "eval/wer": "Speech"}
    for name, title in names.items():
        assert [chart.title for chart in charts_of({name: ([1, 2], [0.5, 0.6])})] == [title]
