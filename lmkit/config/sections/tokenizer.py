"""`tokenizer`: how text becomes tokens."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import Section, key


class TokenizerKind(Enum):
    """Where the vocabulary comes from."""

    bytes = 0  # 256 bytes and the end of a document
    bpe = 1  # byte-level BPE trained on the training text
    file = 2  # a tokenizer.json
    init = 3  # that of init_from
    wordpiece = 4  # WordPiece trained on the training text
    unigram = 5  # unigram pieces of bytes, trained on the training text


@dataclass
class TokenizerConfig(Section):
    """Text to ids."""

    section: ClassVar[str] = "tokenizer"

    kind: TokenizerKind = key(
        TokenizerKind.bpe, "bytes, a trained vocabulary (bpe, wordpiece, unigram), a file, or that of init_from"
    )
    vocab_size: int = key(8192, "size of a trained vocabulary, with its special tokens", at_least=257)
    train_mb: int = key(64, "megabytes of training text that a vocabulary is trained on", at_least=1)
    path: str = key("", "a tokenizer.json, with kind=file: a file, or a URL that fsspec opens")
    end_token: str = key("<|endoftext|>", "token that ends a document; with kind=file it must exist in the file")
    start_token: str = key("", "token that begins a row of an encoder ([CLS]); '' = end_token")
    mask_token: str = key("", "token in the place of a masked one; '' = <|mask|>, [MASK] or <mask> where one is needed")
    source_start: list[str] = key([], "tokens before an encoder-decoder's source, or a caption; [] = none")
    target_start: list[str] = key([], "tokens that a decoder's target begins with, in order; [] = start_token")
    pair_ends: int = key(1, "end tokens between the two texts of a pair; RoBERTa has 2", at_least=1)
    special_tokens: list[str] = key([], "further tokens that a trained vocabulary gets whole, such as <|im_start|>")
    chat_template: str = key(
        "",
        "conversations as Jinja text, or a .jinja file or URL with it; none = as data.message_format says; '' = that, "
        "or with kind=init the template of init_from",
    )
    sentinels: int = key(0, "tokens <extra_id_0> ... for the spans cut out; 0 = as many as are needed", at_least=0)
