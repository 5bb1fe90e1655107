"""Tokens as bytes: what log-probabilities are told of, and what a grammar is matched with."""

import json
import re
from collections.abc import Callable

from lmkit.data.tokens.bulk import bytes_of_letters
from lmkit.weights import Codec

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTES = 256


class Vocabulary:
    """The tokens of a codec.

    Attributes:
        pieces: the bytes that each id stands for; of special tokens their names; b"" for an id without a token.
        special: ids that are no text.
    """

    def __init__(self, codec: Codec):
        self.pieces: list[bytes] = [b""] * codec.vocab_size
        if codec.inner is None:
            self.pieces[:_BYTES] = [bytes([one]) for one in range(_BYTES)]
            self.special = set(range(_BYTES, codec.vocab_size))
            for token in self.special:
                self.pieces[token] = f"<|{token}|>".encode()
            return
        added = codec.inner.get_added_tokens_decoder()
        self.special = {token for token, one in added.items() if one.special}
        as_bytes = _spelling(json.loads(codec.inner.to_str()))
        for piece, token in codec.inner.get_vocab(with_added_tokens=True).items():
            self.pieces[token] = piece.encode() if token in added else as_bytes(piece)

    def text(self, token: int) -> str:
        """The token as text; of a part of a character U+FFFD."""
        return self.pieces[token].decode(errors="replace")

    def key(self, token: int) -> str:
        """As `text`; of a part of a character bytes:\\xe2, as OpenAI's API has it, so that no two are the same."""
        try:
            return self.pieces[token].decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{one:02x}" for one in self.pieces[token])


def _spelling(about: dict) -> Callable[[str], bytes]:
    """How the pieces of a tokenizer.json spell bytes."""
    kinds = re.findall(r'"type": "(\w+)"', json.dumps([about["decoder"], about["pre_tokenizer"]]))
    if "ByteLevel" in kinds:
        byte_of = bytes_of_letters()
        return lambda piece: b"".join(
            bytes([byte_of[letter]]) if letter in byte_of else letter.encode() for letter in piece
        )
    if "WordPiece" in kinds:
        return lambda piece: piece[2:].encode() if piece.startswith("##") else f" {piece}".encode()

    def plain(piece: str) -> bytes:
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()

    return plain
