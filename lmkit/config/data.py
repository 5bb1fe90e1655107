"""The sections that say where a run's data come from and what they are turned into."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import Section, key


class Source(Enum):
    """Where text comes from."""

    python_stdlib = 0  # the running Python's own library: on every machine, nothing is downloaded
    text_files = 1  # .txt, .jsonl, .parquet


@dataclass
class SourceConfig(Section):
    """One part of a mixture."""

    section: ClassVar[str] = "data.mixture"

    source: Source = key(Source.text_files, "kind of source")
    paths: list[str] = key([], "files, folders or globs, local or fsspec URLs")
    weight: float = key(1.0, "share of the rows of a batch, relative to the other parts", at_least=0.0)


@dataclass
class DataConfig(Section):
    """From text to batches."""

    section: ClassVar[str] = "data"

    source: Source = key(Source.text_files, "kind of source")
    paths: list[str] = key([], "files, folders or globs of .txt, .jsonl(.gz), .parquet; local or fsspec URLs")
    text_key: str = key("text", "field of a .jsonl or .parquet record that holds the text")
    mixture: dict[str, SourceConfig] = key({}, "named parts with paths and weights, instead of `source` and `paths`")
    seq_len: int = key(1024, "tokens a row", at_least=1)
    holdout_every: int = key(20, "one document in so many is held out, chosen by a hash of its name", at_least=2)
    isolate_documents: bool = key(True, "attention does not cross documents packed into one row")
    cache_dir: str = key("", "where stores and tokenizers are kept; '' = $LMKIT_CACHE or the user's cache folder")
    prefetch: int = key(4, "batches read ahead", at_least=1)
    read_threads: int = key(2, "threads that read them", at_least=1)


class TokenizerKind(Enum):
    """Where the vocabulary comes from."""

    bytes = 0  # 256 bytes and the end of a document
    bpe = 1  # byte-level BPE trained on the training text
    file = 2  # a tokenizer.json
    init = 3  # that of init_from


@dataclass
class TokenizerConfig(Section):
    """Text to ids."""

    section: ClassVar[str] = "tokenizer"

    kind: TokenizerKind = key(TokenizerKind.bpe, "bytes, a trained byte-level BPE, a file, or that of init_from")
    vocab_size: int = key(8192, "size of a trained vocabulary, the end-of-document token included", at_least=257)
    train_mb: int = key(64, "megabytes of training text that a BPE is trained on", at_least=1)
    path: str = key("", "a tokenizer.json, with kind=file")
    end_token: str = key("<|endoftext|>", "token that ends a document; with kind=file it must exist in the file")
