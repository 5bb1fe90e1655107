"""Decoders made or asked wrongly say what is wrong and the way out; nothing is compiled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import BERTConfig, EncDecConfig, GPTConfig
from lmkit.config.sections.model import Position
from lmkit.decode import BeamSearch, Decoder, Prompts, Sampling, TextStream

SMALL: dict[str, Any] = {"vocab_size": 16, "num_layers": 1, "num_heads": 2, "embed_dim": 8, "max_seq_len": 6}
GPT, ENCDEC = GPTConfig(**SMALL, position=Position.learned), EncDecConfig(**SMALL)
SOURCE = np.ones((1, 4), np.int32)


def made(config: Any = GPT, sampling: Sampling | None = None, **more: Any) -> Decoder:
    return Decoder(lambda params: params, config, sampling or Sampling(), **more)


def asked(*prompts: Any, config: Any = GPT, new: int = 2) -> Any:
    return made(config).generate({}, Prompts(*prompts), max_new_tokens=new)


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda: made(BERTConfig(**SMALL)), "decoder for BERTConfig: only GPTConfig and EncDecConfig"),
    (lambda: made(end_ids=[16]), r"end_ids=\[16\]: the model has no token 16, only 0 to 15"),
    (lambda: made(vocab_size=-1), "vocab_size=-1"),
    (lambda: made(sampling=Sampling(temperature=-1.0)), "temperature=-1.0: it must be at least 0"),
    (lambda: made(sampling=Sampling(top_k=-2)), "top_k=-2: it must be at least 0"),
    (lambda: made(sampling=Sampling(top_p=1.5)), "top_p=1.5: it must be at least 0 and at most 1"),
    (lambda: made(sampling=Sampling(min_p=2)), "min_p=2"),
    (lambda: made(sampling=Sampling(repetition_penalty=0)), "repetition_penalty=0: it must be above 0"),
    (lambda: asked([]), "no prompts"),
    (lambda: asked([[1], []]), r"tokens\[1\] is empty: a row begins with at least one token"),
    (lambda: asked([1, 2]), r"tokens\[0\]=1: each row is a list of int ids"),
    (lambda: asked(["ab"]), r"tokens\[0\]='ab': each row"),
    (lambda: asked([[0.5]]), r"tokens\[0\]=\[0.5\]: each row"),
    (lambda: asked([[1, 16]]), "ids from 1 to 16, the model 0 to 15: use the tokenizer"),
    (lambda: asked([[1]], new=0), "max_new_tokens=0: it must be at least 1"),
    (lambda: asked([[1] * 5], new=3), "5 tokens and max_new_tokens=3 need more than the model's 6.*max_new_tokens=2"),
    (lambda: asked([[1] * 7]), "7 tokens.*shorten it"),
    (lambda: asked([[1]], SOURCE), "a GPT has no encoder"),
    (lambda: asked([[1]], config=ENCDEC), "prompts.source is None: an encoder-decoder needs a source"),
    (lambda: asked([[1], [2]], SOURCE, config=ENCDEC), "prompts.source has 1 rows, prompts.tokens 2"),
    (lambda: asked([[1]], SOURCE, SOURCE[:0], config=ENCDEC), "prompts.source_ids has 0 rows"),
    (lambda: asked([[1]], SOURCE * 99, config=ENCDEC), "prompts.source has ids from 99 to 99"),
    (lambda: BeamSearch(made(), 0), "beams=0"),
    (lambda: BeamSearch(made(), 2).search({}, Prompts([[]]), max_new_tokens=1), "is empty"),
    (lambda: BeamSearch(made(), 2).search({}, Prompts([[1] * 6]), max_new_tokens=2), "max_new_tokens=1, or shorten"),
    (lambda: TextStream(str, stop="end"), r"stop='end': give a list of strings"),
])  # fmt: skip
def test_a_wrong_call(wrong: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)
