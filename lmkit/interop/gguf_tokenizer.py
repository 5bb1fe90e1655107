"""The tokenizer inside a GGUF file, where it is a byte-level BPE."""

from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from lmkit.config.base import ConfigError
from lmkit.interop.gguf import GGUFSource

# How text is cut before merging, by llama.cpp's name for it, where a pattern says it.
PATTERNS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                 r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
             r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}  # fmt: skip
WHOLE = ("llama-bpe", "llama3", "llama-v3")  # names of one cut, with which a word that is a token is not merged
_SPLITS = ("gpt-2", "smollm", "qwen2", *WHOLE)
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of token
_PLACE = "tokenizer.ggml."
_USED = {_PLACE + name for name in (
    "model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id",
    "add_bos_token", "add_eos_token",
)}  # fmt: skip
_HARMLESS = (*(_PLACE + name for name in (  # of other kinds of tokenizer, or of what is asked of a model later
    "scores", "unknown_token_id", "padding_token_id", "separator_token_id", "seperator_token_id", "cls_token_id",
    "mask_token_id", "fim_", "prefix_token_id", "suffix_token_id", "middle_token_id", "add_space_prefix",
    "add_sep_token", "remove_extra_whitespaces", "precompiled_charsmap", "token_type_count",
)), "tokenizer.chat_template", "tokenizer.huggingface.json", "tokenizer.rwkv.world")  # fmt: skip


class GGUFTokenizer(NamedTuple):
    """A tokenizer without special tokens of its own, and the ids that begin and end a text."""

    inner: tokenizers.Tokenizer
    begin: list[int]
    end: list[int]


def read_gguf_tokenizer(path: str | Path) -> GGUFTokenizer:
    """Raises ConfigError for a kind of tokenizer that is not read, naming tokenizer.path as the way out."""
    fields = GGUFSource(Path(path)).fields

    def get(name: str, default: Any = None) -> Any:
        return fields.get(_PLACE + name, default)

    way_out = "give a tokenizer.json with tokenizer.path="
    if (kind := get("model")) != "gpt2":
        raise ConfigError(
            f"{path}: its tokenizer is of the kind {kind!r}, lmkit reads 'gpt2' (byte-level BPE); {way_out}"
        )
    if (split := get("pre")) not in _SPLITS:
        raise ConfigError(f"{path}: its tokenizer splits text by {split!r}, lmkit by {', '.join(_SPLITS)}; {way_out}")
    if get("add_eos_token", False):
        raise ConfigError(f"{path}: add_eos_token=true: a prompt would end before its answer; {way_out}")
    fields.check_known(_USED, _HARMLESS, "tokenizer.")
    try:
        inner = _inner(get("tokens"), get("token_type", []), get("merges", []), split)
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{path}: its tokenizer is damaged: {error}; {way_out}") from error
    start = get("bos_token_id")
    begins = get("add_bos_token", split in WHOLE)  # llama.cpp's default of each split
    if begins and start is None:
        raise ConfigError(
            f"{path}: a text begins with a token (tokenizer.ggml.pre={split}), and bos_token_id is missing"
        )
    end = [token for token in map(get, ("eos_token_id", "eot_token_id", "eom_token_id")) if token is not None]
    if wrong := [token for token in (*([start] if begins else []), *end)
                 if type(token) is not int or not 0 <= token < inner.get_vocab_size()]:  # fmt: skip
        raise ConfigError(f"{path}: special token {wrong[0]!r} is none of its {inner.get_vocab_size()} tokens")
    return GGUFTokenizer(inner, [start] if begins else [], list(dict.fromkeys(end)))


def _inner(names: list[str], kinds: list[int], merges: list[str], split: str) -> tokenizers.Tokenizer:
    pairs: Any = [tuple(merge.split(" ", 1)) for merge in merges]
    whole = split in WHOLE
    inner = tokenizers.Tokenizer(
        models.BPE({name: number for number, name in enumerate(names)}, pairs, ignore_merges=whole)
    )
    inner.pre_tokenizer = _pre_tokenizer(split)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    for wanted, special in ((CONTROL, True), (USER, False)):
        found = [
            AddedToken(n, special=special, normalized=False) for n, k in zip(names, kinds, strict=False) if k == wanted
        ]
        (inner.add_special_tokens if special else inner.add_tokens)(found)
    return inner


def _pre_tokenizer(split: str) -> Any:
    if pattern := PATTERNS.get("llama-bpe" if split in WHOLE else split):
        cut: Any = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    plain: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits: Any = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, plain]) if split == "smollm" else plain
