"""The names of a classifier's classes."""

from pathlib import Path
from typing import Any

from lmkit.config.documents import read_document
from lmkit.weights.model import SavedModel
from lmkit.weights.source import Form


def run_labels(run: Path, config: Any) -> list[str]:
    """Of a run, from its receipt; [] where it says nothing that fits."""
    receipt = run / "receipt.json"
    data = read_document(receipt).get("data") if receipt.is_file() else None
    parts = data.values() if isinstance(data, dict) else ()
    names = next((part["labels"] for part in parts if isinstance(part, dict) and part.get("labels")), [])
    return names if len(names) == getattr(config, "num_classes", 0) else []


def labels_of(model: SavedModel) -> list[str]:
    """The classes in their order: of a run's receipt, of a folder's id2label; else LABEL_0, LABEL_1, ..."""
    count = model.config.num_classes  # type: ignore[attr-defined]
    if model.source.form is Form.run:
        found = run_labels(model.source.home, model.config)
    else:
        file = model.source.path / "config.json"
        named = read_document(file).get("id2label") if file.is_file() else None
        named = named if isinstance(named, dict) else {}
        found = [named[str(n)] for n in range(count)] if {str(n) for n in range(count)} <= set(named) else []
    usable = all(isinstance(one, str) for one in found) and len(set(found)) == count
    return found if usable else [f"LABEL_{number}" for number in range(count)]
