"""Text to ids and back: bytes, a byte-level BPE trained on the data, or any tokenizer.json."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from lmkit.config.base import ConfigError, nearest
from lmkit.config.data import TokenizerConfig, TokenizerKind


class Tokenizer(Protocol):
    """What the rest of lmkit needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def end_id(self) -> int:
        """The token that ends a document and starts the next."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int64 ids of each text, without special tokens."""
        ...

    def decode(self, ids: Iterable[int]) -> str: ...
    def save(self, path: Path) -> None: ...
    def sha256(self) -> str:
        """Of everything that decides the ids."""
        ...


class ByteTokenizer:
    """UTF-8 bytes, and 256 for the end of a document."""

    vocab_size, end_id = 257, 256

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def save(self, path: Path) -> None:
        path.write_text('{"type": "lmkit-bytes"}\n')

    def sha256(self) -> str:
        return hashlib.sha256(b"lmkit-bytes").hexdigest()


class FastTokenizer:
    """A Hugging Face `tokenizers` pipeline."""

    def __init__(self, inner: tokenizers.Tokenizer, end_token: str):
        end = inner.token_to_id(end_token)
        if end is None:
            known = [t for t in inner.get_vocab() if t.startswith("<") or t.startswith("[")]
            raise ConfigError(f"tokenizer.end_token={end_token!r} is not in the vocabulary.{nearest(end_token, known)}")
        self.inner, self.end_id = inner, end

    @property
    def vocab_size(self) -> int:
        return self.inner.get_vocab_size(with_added_tokens=True)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, np.int64) for e in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        return self.inner.decode(list(ids), skip_special_tokens=True)

    def save(self, path: Path) -> None:
        self.inner.save(str(path))

    def sha256(self) -> str:
        return hashlib.sha256(f"{self.end_id} {self.inner.to_str()}".encode()).hexdigest()


def train_bpe(texts: Iterable[str], vocab_size: int, end_token: str) -> FastTokenizer:
    """A byte-level BPE (Radford et al. 2019, section 2.2) with its 256 bytes, merges and one end token.

    Raises ConfigError where the texts hold too few pairs for `vocab_size`.
    """
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    inner.decoder = tokenizers.decoders.ByteLevel()  # type: ignore
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[end_token], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    if (got := inner.get_vocab_size()) < vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size={vocab_size}: the training text has pairs for {got} tokens only; "
            f"set tokenizer.vocab_size={got} or use tokenizer=bytes"
        )
    return FastTokenizer(inner, end_token)


def load_tokenizer(path: Path, end_token: str) -> Tokenizer:
    """A saved tokenizer. Raises ConfigError where the file is missing or not one."""
    if not path.is_file():
        raise ConfigError(f"tokenizer.path={str(path)!r}: no such file")
    if '"lmkit-bytes"' in path.read_text()[:100]:
        return ByteTokenizer()
    try:
        return FastTokenizer(tokenizers.Tokenizer.from_file(str(path)), end_token)
    except ConfigError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"tokenizer.path={str(path)!r} is not a tokenizer.json: {error}") from error


def has_token(path: Path, token: str) -> bool:
    """Whether a saved tokenizer has this token; bytes need none."""
    try:
        load_tokenizer(path, token)
    except ConfigError as error:
        if "not in the vocabulary" not in str(error):
            raise
        return False
    return True


def settings(config: TokenizerConfig) -> list:
    """What, with the training text, decides the tokenizer: a part of the cache's key."""
    if config.kind is TokenizerKind.file:
        path = Path(config.path).expanduser()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        return ["file", digest, config.end_token]
    if config.kind is TokenizerKind.bpe:
        return ["bpe", config.vocab_size, config.end_token, config.train_mb]
    return ["bytes"]
