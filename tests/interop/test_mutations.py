"""Damaged folders and GGUF files: a successful read, or one line; never a traceback."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from interop.mutations import mutations
from interop.test_exchange import SAYABLE, random_params
from tokenizers import Tokenizer
from tokenizers.models import BPE

from lmkit.config.base import UserError
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.model import RopeScaling
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.interop import load_params, read_config, read_gguf_tokenizer, save_folder
from lmkit.interop.families import family_for
from lmkit.weights import open_model, start_tokenizer

SMALL: dict[str, Any] = {"vocab_size": 8, "num_layers": 1, "num_heads": 2, "embed_dim": 4, "mlp_dim": 4}
LLAMA = GPTConfig(**SMALL, gated=True, rope_scaling=RopeScaling.llama3, rope_factor=2.0)


def broken(files: list[Path], count: int, use: Callable[[], Any], seed: int = 0) -> Iterator[str]:
    """What went wrong otherwise than by one line, for each damaged content of each file, one at a time."""
    for file in files:
        whole = file.read_bytes()
        for number, content in enumerate(mutations(file, count, seed)):
            file.write_bytes(content)
            try:
                use()
            except UserError as error:
                if "\n" in str(error):
                    yield f"{file.name} {number}: several lines: {error}"
            except Exception as error:
                yield f"{file.name} {number}: {type(error).__name__}: {error} of {content[:300]!r}"
        file.write_bytes(whole)


def read(folder: Path, shapes: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_params(folder, read_config(folder), shapes)


def test_a_llama(tmp_path: Path) -> None:
    shapes, params = random_params(LLAMA)
    folder = tmp_path / "out"
    save_folder(folder, LLAMA, params, shard_bytes=400)
    files = [folder / "config.json", folder / "model.safetensors.index.json", *sorted(folder.glob("model-*"))[:1]]
    assert list(broken(files, 25, lambda: read(folder, shapes))) == []


GEMMA = {
    "model_type": "gemma3_text", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 32, "max_position_embeddings": 64,
    "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8,
}  # fmt: skip
TEXT = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CLIP = {"model_type": "clip", "text_config": TEXT, "vision_config": TEXT, "projection_dim": 8}


@pytest.mark.parametrize("kind", [*SAYABLE, "gemma", "clip"])
def test_configurations_of_every_kind(kind: str, tmp_path: Path) -> None:
    """config.json alone: what each table reads of it."""
    given = {"gemma": GEMMA, "clip": CLIP}
    written = given[kind] if kind in given else family_for(SAYABLE[kind])[1]
    (tmp_path / "config.json").write_text(json.dumps(written))
    read_config(tmp_path)
    assert list(broken([tmp_path / "config.json"], 30, lambda: read_config(tmp_path))) == []


def test_a_folder_of_ours_with_its_tokenizer(tmp_path: Path) -> None:
    """What `open_model` and tokenizer=init read of a folder."""
    config, folder = GPTConfig(**SMALL, logit_softcap=3.0), tmp_path / "out"
    save_folder(folder, config, random_params(config)[1], fallback=True)
    Tokenizer(BPE({"a": 0, "b": 1}, [])).save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 0], "bos_token_id": 1}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "b"}, "sep_token": "a"}')

    def use() -> None:
        codec = open_model(str(folder)).codec()
        assert all(token >= 0 for token in codec.end_ids)
        start_tokenizer(TokenizerConfig(kind=TokenizerKind.init), str(folder))

    files = [folder / f"{name}.json" for name in ("config", "generation_config", "tokenizer_config", "tokenizer")]
    assert list(broken([*files, folder / "model.yaml"], 30, use)) == []


def test_a_gguf_file(tmp_path: Path) -> None:
    from interop.test_gguf import small

    path = tmp_path / "model.gguf"
    shapes = small(path)

    def use() -> None:
        read(path, shapes)
        read_gguf_tokenizer(path)

    assert list(broken([path], 60, use)) == []
