"""The model card: every field comes from the run, or from the folder that the model came from."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from export.test_texts import BERT, MODELS, SETTINGS, make_run

from lmkit.config.sections.export import ExportConfig, ExportFormat
from lmkit.data.tokens.vocabulary import train_bpe
from lmkit.export.card import model_card
from lmkit.weights import open_model

RECEIPT = {
    "command": ["/usr/bin/python3.11", "-m", "lmkit.train", "+experiment=mine", "run.name=a b", "data.api_key=12345"],
    "git": {"commit": "abc123", "diff": "+x"}, "versions": {"lmkit": "0.1.0", "jax": "0.10.2"},
    "run": {"name": "mine"}, "devices": {"kind": "TPU v5e", "count": 8},
    "data": {
        "books": {"train": {"documents": 1200, "tokens": 3_400_000, "bytes": 5 << 20}},
        "web": {"train": {"documents": 9, "tokens": 77}},
    },
}  # fmt: skip
SUMMARY = {"steps": 4000, "tokens": 2_000_000_000, "eval/loss": 2.5, "best/eval/loss": 2.25, "train/loss": 1.0,
           "eval/none": None}  # fmt: skip
DATA = {"mixture": {"books": {"source": "text_files", "paths": ["/data/b|ooks.txt"]}, "web": {"source": "hf"}}}


def card(run: Path, kind: str = "llama", **options: Any) -> tuple[dict[str, Any], str]:
    """The YAML head, and the text after it."""
    _, head, text = model_card(open_model(str(run)), 1234, ExportConfig(**options), kind).split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.fixture(scope="module")
def codec() -> Any:
    return train_bpe(["some words and more"] * 20, SETTINGS)


@pytest.fixture
def run(codec: Any, tmp_path: Path) -> Path:
    run = make_run(tmp_path / "run", MODELS["llama"], codec, data=DATA, init_from="/where/base_model")
    (run / "receipt.json").write_text(json.dumps(RECEIPT))
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    for time, value in (("2026-01-01", 0.1), ("2026-02-01", 0.7)):
        (run / "evaluations" / time).mkdir(parents=True)
        results = {"results": {"arc": {"acc,none": value, "acc_stderr,none": 0.01, "alias": "arc"}}}
        (run / "evaluations" / time / "results.json").write_text(json.dumps(results))
    return run


def test_a_run(run: Path) -> None:
    head, text = card(run, dtype="bfloat16")
    assert head == {"license": "unknown", "library_name": "transformers", "tags": ["lmkit", "llama"],
                    "pipeline_tag": "text-generation"}  # fmt: skip
    assert "# mine\n" in text
    assert "1.2 k parameters (1,234; 1 layers of width 16)" in text
    assert "`huggingface` (llama, bfloat16). It was trained from `base_model`." in text
    assert "| books | text_files, b\\|ooks.txt | 1,200 documents, 3,400,000 tokens, 5.00 MiB | not recorded |" in text
    assert "| web | hf | 9 documents, 77 tokens | not recorded |" in text
    assert "It saw 2.0 B tokens in 4,000 steps, on 8 x TPU v5e." in text
    assert "| eval/loss | 2.5 |\n| best/eval/loss | 2.25 |" in text
    assert "train/loss" not in text
    assert "eval/none" not in text
    assert "| arc | acc,none | 0.7 |" in text  # of the newest evaluation
    assert "stderr" not in text
    assert "python -m lmkit.train +experiment=mine 'run.name=a b' " in text
    assert "12345" not in text  # a secret
    assert "lmkit 0.1.0, jax 0.10.2, commit abc123 with changes" in text
    assert "AutoModelForCausalLM.from_pretrained(FOLDER)" in text


def test_a_run_that_says_nothing(codec: Any, tmp_path: Path) -> None:
    """Neither summary nor figures; a classifier is no text generator."""
    run = make_run(tmp_path / "run", BERT, codec)
    head, text = card(run, "lmkit", license="apache-2.0")
    assert head == {"license": "apache-2.0", "library_name": "lmkit", "tags": ["lmkit"],
                    "pipeline_tag": "text-classification"}  # fmt: skip
    assert "lmkit.generate init_from=FOLDER" in text
    assert "## Training" not in text
    assert "## How it was made" not in text


@pytest.mark.parametrize(("format", "library", "words"), [
    ("stablehlo", "jax", "jax and numpy"), ("gguf", "llama.cpp", "llama-cli -m FOLDER/model.gguf"),
])  # fmt: skip
def test_formats(format: str, library: str, words: str, run: Path) -> None:
    head, text = card(run, format=ExportFormat[format])
    assert head["library_name"] == library
    assert words in text


def test_a_folder_keeps_the_head_of_its_card(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    config = {"model_type": "gpt2", "vocab_size": 9, "n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 4}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\ntags:\n- old\n---\n# Theirs\n")
    head, text = card(folder, "gpt2")
    assert head["license"] == "mit"
    assert head["language"] == "en"
    assert head["tags"] == ["old", "lmkit", "gpt2"]
    assert "The head of this card is that of the model it was made from (`theirs/README.md`)." in text
    assert "# Theirs" not in text
    assert card(folder, license="cc0-1.0")[0]["license"] == "cc0-1.0"
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert card(folder)[0]["license"] == "unknown"
    (folder / "README.md").unlink()
    assert "The head of this card" not in card(folder)[1]
