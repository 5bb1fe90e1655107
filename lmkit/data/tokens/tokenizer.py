"""Text to ids and back: bytes, a vocabulary trained on the data, or any tokenizer.json."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from lmkit.config.base import ConfigError, nearest
from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.sources.files import read_bytes


class Tokenizer(Protocol):
    """What the rest of lmkit needs of a tokenizer.

    Attributes:
        notes: what the user should know of it, a line each.
        trained_on: by source, the bytes and documents of text that it was trained on, and all that there were.
    """

    notes: list[str]
    trained_on: dict[str, dict[str, int]]

    @property
    def vocab_size(self) -> int: ...
    @property
    def end_id(self) -> int:
        """The token that ends a document and starts the next."""
        ...

    @property
    def start_id(self) -> int:
        """The token that begins a row of an encoder."""
        ...

    @property
    def source_start_ids(self) -> list[int]:
        """Tokens before an encoder-decoder's source, or a caption."""
        ...

    @property
    def target_start_ids(self) -> list[int]:
        """Tokens that a decoder's target begins with, one or more."""
        ...

    @property
    def pair_ends(self) -> int:
        """How many end tokens stand between two texts of a row."""
        ...

    @property
    def mask_id(self) -> int | None: ...
    @property
    def sentinel_ids(self) -> list[int]: ...
    def continues_word(self) -> tuple[np.ndarray, np.ndarray]:
        """bool [V] twice: the token may go on with the word before it, and the one after it may go on with its."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int64 ids of each text, without special tokens."""
        ...

    def encode_chars(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same ids, and int64: the last character of the text that each token stands for."""
        ...

    def decode(self, ids: Iterable[int]) -> str: ...
    def save(self, path: Path) -> None: ...
    def sha256(self) -> str:
        """Of everything that decides the ids."""
        ...


class ByteTokenizer:
    """UTF-8 bytes, 256 for the end of a document, then a mask and sentinels where they are asked for."""

    end_id = start_id = 256
    pair_ends = 1

    def __init__(self, mask: bool = False, sentinels: int = 0):
        self.notes, self.trained_on = [], {}
        self.source_start_ids, self.target_start_ids = [], [self.start_id]
        self.mask_id = 257 if mask else None
        first = 257 + mask
        self.sentinel_ids = list(range(first, first + sentinels))
        self.vocab_size = first + sentinels

    def continues_word(self) -> tuple[np.ndarray, np.ndarray]:
        letters = np.zeros(self.vocab_size, bool)
        letters[[i for i in range(256) if chr(i).isalnum() or i >= 128]] = True
        return letters, letters

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        check_texts(texts)
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]

    def encode_chars(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        sizes = [[len(char.encode()) for char in text] for text in texts]
        lasts = [np.repeat(np.arange(len(text)), size) for text, size in zip(texts, sizes, strict=True)]
        return list(zip(self.encode_batch(texts), lasts, strict=True))

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in _whole(ids) if i < 256).decode("utf-8", errors="replace")

    def save(self, path: Path) -> None:
        extra = {"mask": self.mask_id is not None, "sentinels": len(self.sentinel_ids)}
        path.write_text(json.dumps({"type": "lmkit-bytes"} | {name: n for name, n in extra.items() if n}) + "\n")

    def sha256(self) -> str:
        extra = f" {self.vocab_size}" if self.vocab_size > 257 else ""
        return hashlib.sha256(f"lmkit-bytes{extra}".encode()).hexdigest()


class FastTokenizer:
    """A Hugging Face `tokenizers` pipeline."""

    def __init__(self, inner: tokenizers.Tokenizer, config: TokenizerConfig):
        self.inner, self.config = inner, config
        self.notes: list[str] = []
        self.trained_on: dict[str, dict[str, int]] = {}
        self.vocab_size = vocab_size_of(inner)
        self.end_id = self._id_of("end_token", config.end_token)
        self.start_id = self._id_of("start_token", config.start_token or config.end_token)
        self.source_start_ids = [self._id_of("source_start", token) for token in config.source_start]
        self.target_start_ids = [self._id_of("target_start", token) for token in config.target_start] or [self.start_id]
        self.pair_ends = config.pair_ends
        self.mask_id = self._id_of("mask_token", config.mask_token) if config.mask_token else None
        self.sentinel_ids = [self._id_of("sentinels", sentinel(n)) for n in range(config.sentinels)]
        for token in config.special_tokens:
            self._id_of("special_tokens", token)

    def _id_of(self, key: str, token: str) -> int:
        found = self.inner.token_to_id(token)
        if found is None:
            known = [t for t in self.inner.get_vocab() if t.startswith("<") or t.startswith("[")]
            raise ConfigError(f"tokenizer.{key}: {token!r} is not in the vocabulary.{nearest(token, known)}")
        return found

    def continues_word(self) -> tuple[np.ndarray, np.ndarray]:
        special, pieces = self.inner.get_added_tokens_decoder(), self.inner.get_vocab(with_added_tokens=True)
        wordpiece = any(piece.startswith("##") for piece in pieces)
        goes_on, joins = np.zeros(self.vocab_size, bool), np.zeros(self.vocab_size, bool)
        for piece, i in pieces.items():
            if i not in special:
                goes_on[i] = piece.startswith("##") if wordpiece else _letter(piece[0])
                joins[i] = wordpiece or _letter(piece[-1])
        return goes_on, joins

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        check_texts(texts)
        encoded = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, np.int64) for e in encoded]

    def encode_chars(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        check_texts(texts)
        return [
            (np.array(one.ids, np.int64), np.array([max(start, stop - 1) for start, stop in one.offsets], np.int64))
            for one in self.inner.encode_batch(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        return self.inner.decode(_whole(ids), skip_special_tokens=True)

    def save(self, path: Path) -> None:
        self.inner.save(str(path))

    def sha256(self) -> str:
        special = [self.end_id]
        if self.start_id != self.end_id or self.mask_id is not None or self.sentinel_ids:
            special += [self.start_id, self.mask_id, *self.sentinel_ids]  # type: ignore[list-item]
        if self.source_start_ids or self.target_start_ids != [self.start_id] or self.pair_ends != 1:
            special += ["rows", *self.source_start_ids, "|", *self.target_start_ids, self.pair_ends]  # type: ignore
        return hashlib.sha256(f"{' '.join(map(str, special))} {self.inner.to_str()}".encode()).hexdigest()


def vocab_size_of(inner: tokenizers.Tokenizer) -> int:
    """One more than the largest id: a vocabulary may have holes, and arrays are indexed by ids."""
    return max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def without_state(inner: tokenizers.Tokenizer) -> list[str]:
    """Switches off what a file may hold and a text must not be changed by; returns a name for each."""
    found = []
    if inner.truncation:
        found.append(f"its truncation to {inner.truncation['max_length']} tokens")
        inner.no_truncation()
    if inner.padding:
        found.append("its padding")
        inner.no_padding()
    if getattr(inner.model, "dropout", None):
        found.append(f"its dropout of {inner.model.dropout:.3g} of the merges")  # type: ignore[attr-defined]
        inner.model.dropout = None  # type: ignore[attr-defined]
    return found


def check_texts(texts: Iterable[str]) -> None:
    """Raises ConfigError for one text where several are wanted: its letters would be taken for texts."""
    if isinstance(texts, str):
        raise ConfigError(f"texts={texts!r:.40} is one text: give a list, such as [text]")


def _whole(ids: Iterable[int]) -> list[int]:
    found = [int(one) for one in ids]
    if found and min(found) < 0:
        raise ConfigError(f"ids reach down to {min(found)}, which is no token: leave out what stands for nothing")
    return found


def sentinel(number: int) -> str:
    """The token in the place of the n-th span that is cut out."""
    return f"<extra_id_{number}>"


def _letter(char: str) -> bool:
    """Whether a character of a piece is part of a word: byte-level pieces write a space as \u0120, others as \u2581."""
    return char.isalnum() and char not in "\u0120\u010a\u0109" and char != "\u2581"


def load_tokenizer(path: Path | str, config: TokenizerConfig) -> Tokenizer:
    """A saved tokenizer, of a file or a URL. Raises ConfigError where it is missing or not one."""
    place = str(path)
    if "://" in place:
        text = read_bytes(place).decode(errors="replace")
    elif not (file := Path(path).expanduser()).is_file():
        inside = " (a folder: give the tokenizer.json in it)" if file.is_dir() else ""
        raise ConfigError(f"tokenizer.path={place!r}: no such file{inside}")
    else:
        text = file.read_text(encoding="utf-8", errors="replace")
    if '"lmkit-bytes"' in text[:100]:
        try:
            found = json.loads(text)
            return ByteTokenizer(bool(found.get("mask", False)), int(found.get("sentinels", 0)))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"tokenizer.path={place!r} is damaged: {error}; write it anew") from error
    try:
        inner = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"tokenizer.path={place!r} is not a tokenizer.json: {error}") from error
    off = without_state(inner)
    codec = FastTokenizer(inner, config)
    if off:
        codec.notes.append(f"tokenizer.path={place!r}: {' and '.join(off)} is switched off: texts are encoded whole")
    return codec


def token_of(path: Path | str, number: int) -> str:
    """What token a saved tokenizer has under this number; '' of bytes. Raises ConfigError where it is not one."""
    path = Path(path)
    try:
        if '"lmkit-bytes"' in path.read_text()[:100]:
            return ""
        return tokenizers.Tokenizer.from_file(str(path)).id_to_token(number) or ""
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"tokenizer.path={str(path)!r} is not a tokenizer.json: {error}") from error


def has_token(path: Path | str, token: str) -> bool:
    """Whether a saved tokenizer has this token; bytes need none."""
    try:
        load_tokenizer(path, TokenizerConfig(end_token=token))
    except ConfigError as error:
        if "not in the vocabulary" not in str(error):
            raise
        return False
    return True


def settings(config: TokenizerConfig) -> list:
    """What, with the training text, decides the tokenizer: a part of the cache's key."""
    special = [config.start_token, config.mask_token, config.sentinels]
    more = [*(special if any(special) else []), *([config.special_tokens] if config.special_tokens else [])]
    return [config.kind.name, config.vocab_size, config.end_token, config.train_mb, *more]
