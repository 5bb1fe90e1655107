"""What a decoder may be made with and asked for: checks on the host, before anything is compiled."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import EncDecConfig, GPTConfig


def check_decoder(config: Any, vocab_size: int, **ids: Sequence[int]) -> None:
    """Raises ConfigError for a model that writes no text, and for tokens that it does not have."""
    if not isinstance(config, GPTConfig | EncDecConfig):
        raise ConfigError(f"a decoder for {type(config).__name__}: only GPTConfig and EncDecConfig write text")
    if vocab_size < 0:
        raise ConfigError(f"vocab_size={vocab_size}: it must be at least 0, which is the model's {config.vocab_size}")
    for name, tokens in ids.items():
        if wrong := [token for token in tokens if not 0 <= token < config.vocab_size]:
            raise ConfigError(
                f"{name}={list(tokens)}: the model has no token {wrong[0]}, only 0 to {config.vocab_size - 1}"
            )


def check_prompts(
    config: Any, limit: int, max_new_tokens: int, tokens: Any, source: Any = None, source_ids: Any = None
) -> None:
    """Raises ConfigError for prompts that the model cannot begin with, or has no room to go on from."""
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens}: it must be at least 1")
    if not len(tokens):
        raise ConfigError("no prompts: give the tokens of at least one row")
    for row, ids in enumerate(tokens):
        _check_row(row, ids, config.vocab_size)
    longest = max(len(ids) for ids in tokens)
    if limit and longest + max_new_tokens - 1 > limit:  # the last token takes no position: nothing comes after it
        room = f"set max_new_tokens={limit - longest + 1}, or shorten it" if longest <= limit else "shorten it"
        raise ConfigError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} need more than the model's {limit} "
            f"positions: {room}"
        )
    _check_source(config, len(tokens), source, source_ids)


def _check_row(row: int, ids: Any, size: int) -> None:
    values = None if isinstance(ids, str) else np.asarray(ids)
    if values is None or values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ConfigError(f"prompts.tokens[{row}]={ids!r:.40}: each row is a list of int ids, such as [[5, 9], [3]]")
    if not values.size:
        raise ConfigError(
            f"prompts.tokens[{row}] is empty: a row begins with at least one token, such as the start token"
        )
    if values.min() < 0 or values.max() >= size:
        raise ConfigError(
            f"prompts.tokens[{row}] has ids from {values.min()} to {values.max()}, the model 0 to {size - 1}: use the "
            f"tokenizer that it was trained with"
        )


def _check_source(config: Any, rows: int, source: Any, source_ids: Any) -> None:
    if not isinstance(config, EncDecConfig):
        if source is not None or source_ids is not None:
            raise ConfigError("prompts.source is given, and a GPT has no encoder: put it into prompts.tokens")
        return
    if source is None:
        raise ConfigError(
            "prompts.source is None: an encoder-decoder needs a source, tokens [B, S] or frames [B, S, mels]"
        )
    for name, array in (("source", source), ("source_ids", source_ids)):
        if array is not None and len(array) != rows:
            raise ConfigError(f"prompts.{name} has {len(array)} rows, prompts.tokens {rows}: give as many")
    ids = np.asarray(source)
    if (
        not config.num_mels
        and ids.dtype.kind in "iu"
        and ids.size
        and not 0 <= ids.min() <= ids.max() < config.vocab_size
    ):
        raise ConfigError(
            f"prompts.source has ids from {ids.min()} to {ids.max()}, the model 0 to {config.vocab_size - 1}: use the "
            f"tokenizer that it was trained with"
        )
