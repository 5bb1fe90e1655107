"""The tokenizer inside a GGUF file, where it is a byte-level BPE."""

from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from lmkit.config.base import ConfigError
from lmkit.interop.gguf import GGUFSource

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = ("gpt-2", "smollm", "llama-bpe")  # how text is cut before merging, by the file's name for it
_CONTROL, _USER = 3, 4  # kinds of token


class GGUFTokenizer(NamedTuple):
    """A tokenizer without special tokens of its own, and the ids that begin and end a text."""

    inner: tokenizers.Tokenizer
    begin: list[int]
    end: list[int]


def read_gguf_tokenizer(path: str | Path) -> GGUFTokenizer:
    """Raises ConfigError for a kind of tokenizer that is not read, naming tokenizer.path as the way out."""
    fields = GGUFSource(Path(path)).fields

    def get(name: str, default: Any = None) -> Any:
        return fields.get(f"tokenizer.ggml.{name}", default)

    way_out = "give a tokenizer.json with tokenizer.path="
    if (kind := get("model")) != "gpt2":
        raise ConfigError(
            f"{path}: its tokenizer is of the kind {kind!r}, lmkit reads 'gpt2' (byte-level BPE); {way_out}"
        )
    if (split := get("pre", "gpt-2")) not in _SPLITS:
        raise ConfigError(f"{path}: its tokenizer splits text by {split!r}, lmkit by {', '.join(_SPLITS)}; {way_out}")
    names = get("tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in get("merges", [])]
    inner = tokenizers.Tokenizer(
        models.BPE({name: number for number, name in enumerate(names)}, merges, ignore_merges=split == "llama-bpe")
    )
    inner.pre_tokenizer = _pre_tokenizer(split)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    kinds = get("token_type", [])
    for wanted, special in ((_CONTROL, True), (_USER, False)):
        found = [
            AddedToken(n, special=special, normalized=False) for n, k in zip(names, kinds, strict=False) if k == wanted
        ]
        (inner.add_special_tokens if special else inner.add_tokens)(found)
    begin = [get("bos_token_id")] if get("add_bos_token", False) and get("bos_token_id") is not None else []
    end = [token for token in (get("eos_token_id"), get("eot_token_id")) if token is not None]
    return GGUFTokenizer(inner, begin, end)


def _pre_tokenizer(split: str) -> Any:
    if split == "llama-bpe":
        cut: Any = pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated")
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    plain: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits: Any = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, plain]) if split == "smollm" else plain
