"""Text as it comes: whole characters, nothing of a stop string, the same as decoding at once."""

import pytest

from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.data.tokens.vocabulary import train_bpe
from lmkit.decode import TextStream

BYTES = ByteTokenizer()


def pieces(text: str, stop: tuple[str, ...] = (), prompt: str = "") -> tuple[list[str], TextStream]:
    stream = TextStream(BYTES.decode, list(prompt.encode()), stop)
    shown = [stream.push(byte) for byte in text.encode()]
    return [*shown, stream.finish()], stream


@pytest.mark.parametrize("text", ["plain", "häßlich", "日本語 и 🦊🦊", "", "🦊"])
def test_no_half_characters(text: str) -> None:
    shown, _ = pieces(text, prompt="é")
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)


def test_half_a_character_at_the_end_is_told() -> None:
    stream = TextStream(BYTES.decode)
    assert [stream.push(byte) for byte in "🦊".encode()[:3]] == ["", "", ""]
    assert stream.finish() == "\ufffd"


def test_bytes_that_are_no_text_do_not_hold_up_what_follows() -> None:
    stream = TextStream(BYTES.decode)
    assert "".join(stream.push(byte) for byte in [255, 254, 65]) == "\ufffd\ufffdA"


@pytest.mark.parametrize(("text", "stop", "expected"), [
    ("one two three", ("two",), "one "),
    ("one two three", ("three", "two"), "one "),
    ("aab", ("aab",), ""),
    ("aaab", ("aab",), "a"),
    ("one tw", ("two",), "one tw"),
    ("one", ("",), "one"),
    ("ab\n\nUser: x", ("\n\nUser:",), "ab"),
])  # fmt: skip
def test_stop_strings_are_not_shown(text: str, stop: tuple[str, ...], expected: str) -> None:
    shown, stream = pieces(text, stop)
    assert "".join(shown) == expected
    assert stream.stopped == (expected != text)
    assert not stream.stopped or stream.push(65) == stream.finish() == ""


def test_text_that_cannot_be_a_stop_is_shown_at_once() -> None:
    stream = TextStream(BYTES.decode, stop=["stop"])
    assert [stream.push(byte) for byte in b"asto!st"] == ["a", "", "", "", "sto!", "", ""]


def test_spaces_of_a_tokenizer_that_writes_them_between_words() -> None:
    """A word's space depends on the word before it, the prompt's last one too."""
    from tokenizers import Tokenizer, decoders, models

    inner = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "c": 2}, unk_token="c"))
    inner.decoder = decoders.Metaspace()  # type: ignore[assignment]
    stream = TextStream(inner.decode, [0])
    assert [stream.push(token) for token in (1, 2, 0)] == [" b", "c", " a"]


def test_a_trained_tokenizer_piece_by_piece() -> None:
    text = "Grüße, 日本語! " * 5
    tokenizer = train_bpe([text] * 20, TokenizerConfig(vocab_size=270))
    ids = tokenizer.encode_batch([text])[0].tolist()
    stream = TextStream(tokenizer.decode)
    assert "".join([*(stream.push(token) for token in ids), stream.finish()]) == text
