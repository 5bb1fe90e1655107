"""The notebook for newcomers runs from top to bottom and shows what it promises."""

import html
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from helpers import ROOT

NOTEBOOK = ROOT / "experiments" / "notebook" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Where the notebook was run, and what each of its code cells has shown: text and pages."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client.execute(env={**os.environ, "PYTHONPATH": paths})  # raises where a cell does
    return folder, ["\n".join(map(_text_of, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"]


def _text_of(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    return output.get("text") or data.get("text/html") or data.get("text/plain") or ""


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 10
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_its_links_lead_somewhere() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    headings = {line.removeprefix("## ").replace(" ", "-") for line in text.splitlines() if line.startswith("## ")}
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    assert len(targets) > 8
    for target in targets:
        assert target[1:] in headings if target.startswith("#") else (NOTEBOOK.parent / target).exists(), target


@pytest.mark.slow
def test_it_learns_and_shows_what_it_says(shown: tuple[Path, list[str]]) -> None:
    folder, texts = shown
    (run,) = (folder / "runs" / "first_steps").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[0] > 5
    assert losses[-1] < 3.2, "after 100 steps it knows how often bytes follow each other"
    everything = "\n".join(texts)
    assert "Did you mean 'train.steps'?" in everything
    assert "bits per byte on held-out modules" in everything
    (chart,) = (text for text in texts if "nats per byte" in text and "srcdoc" in text)
    assert html.unescape(chart).count('class="line c0"') == 1
    assert html.unescape(chart).count('class="points c1"') == 1
    assert "'import " in everything, "text that it generated"
    total = sum(int(text.split()[-1].replace(",", "")) for text in texts if "in all" in text)
    assert total == json.loads((run / "receipt.json").read_text())["model"]["params"]
    (shards,) = (text for text in texts if "on a device:" in text)
    (embed,) = (line for line in shards.splitlines() if line.startswith("embed.table"))
    assert " ".join(embed.split()) == "embed.table (264, 64) on a device: (132, 16) P('tensor', 'fsdp')"
    assert html.escape((run / "report.html").read_text()) in texts[-1]
