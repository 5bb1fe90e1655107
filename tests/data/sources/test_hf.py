"""Text from Hugging Face datasets, with no hub."""

import json
from pathlib import Path
from typing import Any

import pytest

datasets = pytest.importorskip("datasets", reason="LOUD: datasets is not installed, data.source=hf is not tested")

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, Source
from lmkit.data.sources import hf
from lmkit.data.sources.text import Bad, Document, TextSource, build_sources


def source_of(path: Path, **changes: Any) -> TextSource:
    return build_sources(DataConfig(source=Source.hf, paths=[str(path)], **changes))["text"]


def saved(folder: Path, rows: int = 10) -> Path:
    texts = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(rows)], "key": list(range(rows))})
    other = datasets.Dataset.from_dict({"text": ["one", None], "key": [1, 2]})
    datasets.DatasetDict({"train": texts, "test": other}).save_to_disk(str(folder / "set"))
    return folder / "set"


def test_a_saved_set(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hf, "_BLOCK_ROWS", 4)
    path = saved(tmp_path)
    source = source_of(path)
    assert list(source.documents()) == [Document(f"set/train:{n + 1}", f"row {n}") for n in range(10)]
    assert [one.text for one in source.documents(1, 2)] == ["row 4", "row 5", "row 6", "row 7"]
    assert [one.name for one in source_of(path, id_key="key").documents()] == [str(n) for n in range(10)]
    bad: list[Bad] = []
    test = source_of(path, split="test")
    assert [one.text for one in test.documents(bad=bad.append)] == ["one"]
    assert bad[0].place == f"{path} split test row 2"
    assert test.fingerprint() != source.fingerprint()
    with pytest.raises(ConfigError, match=r"has no column 'body', it has: text, key; set data.text_key="):
        list(source_of(path, text_key="body").documents())


def test_a_folder_of_files_and_one_split(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(3)))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert [one.text for one in source_of(folder).documents()] == ["row 0", "row 1", "row 2"]
    datasets.Dataset.from_dict({"text": ["alone"]}).save_to_disk(str(tmp_path / "one"))
    assert [one.text for one in source_of(tmp_path / "one").documents()] == ["alone"]


def test_mistakes(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"data.split='valid': .*set has: train, test"):
        source_of(saved(tmp_path), split="valid")
    with pytest.raises(ConfigError, match="cannot open"):
        source_of(tmp_path / "nothing")
    hf._table.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs datasets: pip install 'lmkit\[hf\]'"):
        source_of(tmp_path / "set")
