"""Parts of the data that a notebook calls: wrong input is named with the way out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmkit.config.base import ConfigError
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.batches.masking import Masker, Pairer, SpanCutter
from lmkit.data.order.sampler import Order, Sampler
from lmkit.data.sources.audio import log_mel, read_audio
from lmkit.data.sources.images import augment, read_idx, read_image
from lmkit.data.store.tokens import TokenStore
from lmkit.data.tokens.chat import ChatTemplate
from lmkit.data.tokens.fertility import fertility
from lmkit.data.tokens.tokenizer import ByteTokenizer, has_token, load_tokenizer, token_of
from lmkit.data.tokens.vocabulary import train_tokenizer

BYTES, CONFIG = ByteTokenizer(mask=True, sentinels=2), TokenizerConfig()
WRONG: list[tuple[str, Callable[[Path], Any], str]] = [
    ("", lambda p: log_mel(np.ones((2, 400))), r"samples of shape \[samples\].* it got \(2, 400\)"),
    ("", lambda p: log_mel([]), r"it got \(0,\)"),
    ("", lambda p: log_mel(np.array(["a"])), "log_mel takes float samples"),
    ("", lambda p: log_mel(np.ones(400), num_mels=0), "num_mels=0 .*at least one band"),
    ("", lambda p: log_mel(np.ones(400), sample_rate=0), "sample_rate=0"),
    ("soundfile", lambda p: read_audio(p / "a.wav"), "a.wav: no such sound file"),
    ("soundfile", lambda p: read_audio(p / "broken.json"), "cannot be read as sound"),
    ("PIL", lambda p: read_image(p / "a.png", 4, 3), "a.png cannot be read as an image"),
    ("PIL", lambda p: read_image(p / "a.png", 4, 2), "images have 1 channel .* not 2"),
    ("", lambda p: read_idx(p / "a.idx"), "a.idx cannot be read: No such file"),
    ("", lambda p: augment(np.ones((2, 4, 4)), np.ones(2, np.uint64)), r"images \(2, 4, 4\) and keys \(2,\)"),
    ("", lambda p: augment(np.ones((1, 4, 4, 1)), np.ones(1, np.uint64), scale=1.0), "scale must be below 1"),
    ("", lambda p: load_tokenizer(p / "nowhere.json", CONFIG), "no such file"),
    ("", lambda p: load_tokenizer(p, CONFIG), "a folder: give the tokenizer.json in it"),
    ("", lambda p: load_tokenizer(p / "broken.json", CONFIG), "is not a tokenizer.json"),
    ("", lambda p: load_tokenizer(p / "bytes.json", CONFIG), "bytes.json' is damaged"),
    ("", lambda p: has_token(p / "nowhere.json", "a"), "no such file"),
    ("", lambda p: token_of(p / "nowhere.json", 1), "nowhere.json' is not a tokenizer.json: .*No such file"),
    ("", lambda p: token_of(p / "broken.json", 1), "broken.json' is not a tokenizer.json"),
    ("", lambda p: BYTES.encode_batch("text"), r"texts='text' is one text: give a list, such as \[text\]"),
    ("", lambda p: BYTES.decode([65, -1]), "ids reach down to -1"),
    ("", lambda p: train_tokenizer("text", CONFIG), "texts='text' is one text"),
    ("", lambda p: train_tokenizer([], CONFIG), "tokenizer.vocab_size"),
    ("", lambda p: fertility(BYTES, "text"), "texts='text' is one text"),
    ("", lambda p: Masker(ByteTokenizer(), 0.15, False), "set tokenizer.mask_token="),
    ("", lambda p: Masker(BYTES, 1.5, False), "share=1.5 of the tokens"),
    ("", lambda p: SpanCutter(BYTES, 64, 0.5, 3.0), r"has \d+ spans, the tokenizer 2 sentinels: set"),
    ("", lambda p: SpanCutter(BYTES, 2, 0.15, 3.0), "seq_len=2 .*a row needs 5 tokens"),
    ("", lambda p: Pairer(BYTES, 3), "seq_len=3: a pair of sentences needs 5"),
    ("", lambda p: Order([], [], 0), r"parts of \[\] elements"),
    ("", lambda p: Order([3, 0], [1, 1], 0), r"parts of \[3, 0\] elements with weights \[1.0, 1.0\]"),
    ("", lambda p: Order([3, 3], [1], 0), "give one weight a part"),
    ("", lambda p: Order([3, 3], [0, 0], 0), "one at least above 0"),
    ("", lambda p: Sampler([9], [-1], 4, 0), "none may be negative"),
    ("", lambda p: TokenStore(p / "nowhere"), "nowhere"),
    ("jinja2", lambda p: ChatTemplate("{{ 1 + }}", "<end>"), "is not a template: line 1"),
    ("jinja2", lambda p: ChatTemplate("x", "<end>").pieces([{"text": "a"}], "row 1"), "row 1: message 1 is .* a role"),
    ("jinja2", lambda p: ChatTemplate("x", "<end>").pieces(["hello"], "row 1"), "message 1 is 'hello'"),
    ("jinja2", lambda p: ChatTemplate("x", "<end>").pieces([{"role": "assistant"}], "row 1"), "and a content"),
]  # fmt: skip


@pytest.mark.parametrize(("package", "wrong", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_call(tmp_path: Path, package: str, wrong: Callable, message: str) -> None:
    if package:
        pytest.importorskip(package)
    (tmp_path / "broken.json").write_text('{"model": ')
    (tmp_path / "bytes.json").write_text('{"type": "lmkit-bytes", "mask"')
    with pytest.raises(ConfigError, match=message):
        wrong(tmp_path)
