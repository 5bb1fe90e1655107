"""Files of others: what state of theirs is switched off, and vocabularies with holes."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lmkit.config.sections.data import DataConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.prepare import prepare
from lmkit.data.store.tokens import TRAIN
from lmkit.data.tokens.fertility import fertility
from lmkit.data.tokens.tokenizer import FastTokenizer, load_tokenizer

LETTERS = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def save(path: Path, end: int = 256, dropout: float | None = None) -> TokenizerConfig:
    """A byte-level tokenizer whose end token has this id."""
    inner = Tokenizer(models.BPE(LETTERS | {"ab": 257, "<end>": end}, [("a", "b")], dropout=dropout))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    if dropout is not None:
        inner.enable_truncation(4)
        inner.enable_padding(length=4)
    inner.save(str(path))
    return TokenizerConfig(kind=TokenizerKind.file, path=str(path), end_token="<end>")


def test_truncation_padding_and_dropout_are_switched_off_and_told(tmp_path: Path) -> None:
    config = save(tmp_path / "t.json", dropout=0.9)
    codec = load_tokenizer(config.path, config)
    assert [ids.tolist() for ids in codec.encode_batch(["ab" * 9, "a"])] == [[257] * 9, [LETTERS["a"]]]
    (note,) = codec.notes
    for word in (config.path, "truncation to 4 tokens", "padding", "dropout of 0.9", "switched off"):
        assert word in note
    codec.save(tmp_path / "saved.json")
    assert load_tokenizer(tmp_path / "saved.json", config).notes == []
    assert load_tokenizer(tmp_path / "saved.json", config).sha256() == codec.sha256()
    config = save(tmp_path / "plain.json")
    assert load_tokenizer(config.path, config).notes == []


@pytest.mark.parametrize(("end", "dtype"), [(65_534, np.uint16), (70_000, np.uint32)])
def test_ids_decide_the_size_of_a_vocabulary_with_holes(end: int, dtype: type, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"hello {number} " * 9)
    config = save(tmp_path / "hole.json", end)
    data = DataConfig(paths=[str(tmp_path / "*.txt")], holdout_every=2, cache_dir=str(tmp_path / "cache"))
    found = prepare(data, config)
    assert isinstance(found.tokenizer, FastTokenizer)
    assert found.tokenizer.vocab_size == found.stores["text"].meta["vocab_size"] == end + 1
    (tokens,) = found.stores["text"].read(TRAIN, [0], [1])
    assert (tokens.dtype, tokens[0]) == (dtype, end)
    assert fertility(found.tokenizer, ["hello"])["tokens"] == 5
    assert len(found.tokenizer.continues_word()[0]) == end + 1
