"""export.format: what each folder has, whole or not at all, and what is refused before anything is written."""

import json
from pathlib import Path
from typing import Any

import pytest
from export.test_export import export
from interop.test_exchange import random_params
from interop.test_gguf_write import make_tokenizer

from helpers import tiny_config
from lmkit.export import main
from lmkit.interop import gguf_write, read_gguf_tokenizer, save_folder
from lmkit.nn.tree import flat
from lmkit.weights import open_model

CONFIG = tiny_config(vocab_size=404, num_layers=1, embed_dim=32, gated=True)
FILES = {
    "huggingface": ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
    "stablehlo": ["decode.stablehlo", "manifest.json", "prefill.stablehlo", "tokenizer.json", "tokenizer_config.json",
                  "weights.safetensors"],
    "gguf": ["model.gguf"],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tokenizer(folder)
    keys = {"eos_token_id": 0, "bos_token_id": 0}
    save_folder(folder / "hf", CONFIG, random_params(CONFIG)[1], tokenizer=folder / "tokenizer.json", keys=keys)
    return folder / "hf"


@pytest.mark.parametrize("format", FILES)
def test_what_is_written(format: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    words = [f"init_from={model}", f"export.folder={out}", f"export.format={format}", "export.license=mit"]
    assert export(*words) == 0
    assert f"{out}: " in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES[format], "README.md"])
    assert (out / "README.md").read_text().startswith("---\nlicense: mit\n")
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "who may read one may read all"
    if format == "gguf":
        saved = open_model(str(out / "model.gguf"))
        before, after = (flat(one.params().params) for one in (open_model(str(model)), saved))
        assert all((before[path] == after[path]).all() for path in before)
        assert read_gguf_tokenizer(out / "model.gguf").end == [0]
        assert saved.codec().encode("The model") == open_model(str(model)).codec().encode("The model")
    if format == "stablehlo":
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["vocab_size"] == 400
        assert (manifest["begin_ids"], manifest["end_ids"]) == ([], [0])
        assert manifest["tokenizer"] == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(("words", "message"), [
    (["export.format=gguf", "export.dtype=int4"], ["export.dtype=int4", "q8_0, q4_0"]),
    (["export.format=stablehlo", "export.dtype=q8_0"], ["export.dtype=q8_0", "float32, bfloat16"]),
    (["export.dtype=q8_0"], ["export.dtype=q8_0", "export.format=huggingface", "float32, bfloat16, float16"]),
    (["export.format=onnx"], ["onnx", "gguf"]),
])  # fmt: skip
def test_refusals(words: list[str], message: list[str], model: Path, tmp_path: Path,
                  capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """One line, before the parameters are read."""
    monkeypatch.setattr(main.SavedModel, "params", lambda self: pytest.fail("it read the parameters"))
    assert export(f"init_from={model}", f"export.folder={tmp_path / 'out'}", *words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in message), err
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_llama_cpp_has_not(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    state = json.loads((other / "tokenizer.json").read_text()) | {"pre_tokenizer": {"type": "Whitespace"}}
    (other / "tokenizer.json").write_text(json.dumps(state))
    assert export(f"init_from={other}", f"export.folder={tmp_path / 'out'}", "export.format=gguf") == 2
    assert "cuts text in a way" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_nothing_half_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in the middle leaves no folder, nor a part of one."""

    def fail(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(gguf_write, "_write", fail)
    assert export(f"init_from={model}", f"export.folder={tmp_path / 'out'}", "export.format=gguf") != 0
    assert list(tmp_path.iterdir()) == []
