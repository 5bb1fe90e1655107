"""Vocabularies trained on text: byte-level BPE, unigram pieces of bytes, WordPiece; the same from the same text."""

import json
import re
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lmkit.config.base import ConfigError
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.tokens.tokenizer import FastTokenizer, check_texts, sentinel

UNKNOWN = "[UNK]"  # of WordPiece
# of a piece's log probability: threads sum to 1e-10 alike, and decimals of a power of 2 are read as they were written
_STEP = 2.0**-10
# Punctuation stays at its word: the trainer takes a whole word for a piece only where it goes on in different ways.
# (With GPT-2's cut 8,192 pieces needed 1.66 tokens a word of held-out addresses, with this 1.38, BPE 1.34.)
_AT_SPACES = r" ?\S+|\s+(?!\S)|\s+"


# A merge reads all of each word that it occurs in: one of a million letters takes minutes. No language has such words.
LONGEST_WORD = 200
_LONG = re.compile(rf"\S{{{LONGEST_WORD}}}|\s{{{LONGEST_WORD}}}")


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> FastTokenizer:
    """What `config.kind` says, trained on the texts; words of over LONGEST_WORD characters in pieces of so many.

    Raises ConfigError where there is no text.
    """
    check_texts(texts)
    kinds = {TokenizerKind.wordpiece: train_wordpiece, TokenizerKind.unigram: train_unigram}
    cut = read = 0

    def short() -> Iterator[str]:
        nonlocal cut, read
        for text in texts:
            start, read = 0, read + len(text)
            for found in _LONG.finditer(text):
                if found.end() < len(text) and text[found.end()].isspace() == found[0].isspace():
                    yield text[start : found.end()]
                    start, cut = found.end(), cut + 1
            yield text[start:]

    codec = kinds.get(config.kind, train_bpe)(short(), config)
    if not read:
        raise ConfigError(
            f"tokenizer.vocab_size={config.vocab_size}: there is no text to train it on: give more, or a source of the "
            f"mixture a weight above 0, or set tokenizer=bytes"
        )
    if cut:
        codec.notes.append(
            f"the tokenizer was trained on words of at most {LONGEST_WORD} characters: longer ones were cut at {cut:,} "
            f"places"
        )
    return codec


def train_bpe(texts: Iterable[str], config: TokenizerConfig) -> FastTokenizer:
    """A byte-level BPE (Radford et al. 2019, section 2.2) with its special tokens, 256 bytes and merges.

    Where the texts hold too few pairs for `vocab_size` it is smaller, and says so in its notes.
    """
    inner = _of_bytes(models.BPE(), [])
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size, special_tokens=_special(config), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    return _sized(inner, config)


def train_unigram(texts: Iterable[str], config: TokenizerConfig) -> FastTokenizer:
    """A unigram language model of pieces (Kudo 2018) over bytes, in words that are cut at white space alone.

    The 256 bytes are in the vocabulary, so nothing is unknown. Where the texts hold too few pieces it is smaller.
    Raises ConfigError for a `vocab_size` that leaves no room for pieces.
    """
    special = _special(config)
    if config.vocab_size <= 256 + len(special):  # the trainer gives as many as it needs, whatever is asked
        raise ConfigError(
            f"tokenizer.vocab_size={config.vocab_size}: 256 bytes and special tokens ({len(special)}) leave no room "
            f"for pieces; set tokenizer.vocab_size=512 or more"
        )
    inner = _of_bytes(models.Unigram(), [], _AT_SPACES)
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    pieces = json.loads(inner.to_str())["model"]["vocab"][len(special) :]
    # the trainer gives bytes that it lacks the lowest scores, 1e-4 apart, in an order that changes from run to run
    lowest = min(score for _, score in pieces)
    filled = lowest + 256e-4
    scores = {piece: lowest if len(piece) == 1 and score <= filled else score for piece, score in pieces}
    settled = sorted((-round(score / _STEP) * _STEP, piece) for piece, score in scores.items())
    vocab = [*((one, 0.0) for one in special), *((piece, -score) for score, piece in settled)]
    return _sized(_of_bytes(models.Unigram(vocab, None, False), special, _AT_SPACES), config)


def train_wordpiece(texts: Iterable[str], config: TokenizerConfig) -> FastTokenizer:
    """WordPiece (Devlin et al. 2019, section 3), cased: words and punctuation, [UNK] for a word with a new character.

    White space is not kept, nor are control characters. Where the texts hold too few pairs it is smaller. Raises
    ConfigError where their characters alone are more than `vocab_size`.
    """
    texts, special = list(texts), list(dict.fromkeys([*_special(config), UNKNOWN]))
    inner = _of_words(models.WordPiece(unk_token=UNKNOWN))
    # named beforehand, as the trainer would number them in an order that changes from run to run
    continued = {f"##{char}" for word in _words(inner, texts) for char in word[1:]}
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size, special_tokens=[*special, *sorted(continued)], show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    settled = _of_words(models.WordPiece(inner.get_vocab(), unk_token=UNKNOWN))
    settled.add_special_tokens(special)
    return _sized(settled, config)


def _words(inner: tokenizers.Tokenizer, texts: Iterable[str]) -> set[str]:
    """The words of the texts, as the pipeline cuts them."""
    normalizer, cutter = inner.normalizer, inner.pre_tokenizer
    assert normalizer is not None
    assert cutter is not None
    found = {word for text in texts for word in normalizer.normalize_str(text).split()}
    return {piece for word in found for piece, _ in cutter.pre_tokenize_str(word)}


def _of_words(model: models.Model) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)  # type: ignore
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore
    inner.decoder = decoders.WordPiece(cleanup=False)  # type: ignore
    return inner


def _of_bytes(model: models.Model, special: list[str], words: str = "") -> tokenizers.Tokenizer:
    """A pipeline over the letters that stand for bytes; cut by the pattern `words`, or as GPT-2 cuts."""
    inner = tokenizers.Tokenizer(model)
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not words)
    split = [pre_tokenizers.Split(tokenizers.Regex(words), "isolated")] if words else []
    inner.pre_tokenizer = pre_tokenizers.Sequence([*split, cut]) if split else cut  # type: ignore
    inner.decoder = decoders.ByteLevel()  # type: ignore
    inner.add_special_tokens(special)
    return inner


def _special(config: TokenizerConfig) -> list[str]:
    """The tokens that stand for something else than text, in the order of their ids."""
    named = [config.end_token, config.start_token, config.mask_token, *config.special_tokens]
    return list(dict.fromkeys([*filter(None, named), *map(sentinel, range(config.sentinels))]))


def _sized(inner: tokenizers.Tokenizer, config: TokenizerConfig) -> FastTokenizer:
    """The tokenizer, with a note where it is smaller than was asked for. Raises ConfigError where it is larger."""
    got, size = inner.get_vocab_size(), config.vocab_size
    if got > size:
        raise ConfigError(
            f"tokenizer.vocab_size={size}: the characters of the training text alone take {got} tokens of "
            f"{config.kind.name}; set tokenizer.vocab_size={2 * got} or use tokenizer=bpe"
        )
    codec = FastTokenizer(inner, config)
    if got < size:
        codec.notes.append(
            f"tokenizer.vocab_size={size}: the training text has pairs for {got} tokens only; the vocabulary has {got}"
        )
    return codec
