"""Much text to ids: the fast way gives what the slow one gives, or is not taken."""

import random

import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.tokens.bulk import Bulk, fast_encoding
from lmkit.data.tokens.tokenizer import ByteTokenizer, FastTokenizer
from lmkit.data.tokens.vocabulary import train_bpe

END = "<|endoftext|>"
WORDS = [
    f"{a}{b}{c}" for a in ("un", "re", "", "пере", "naï") for b in ("do", "make", "ход") for c in ("ing", "er", "")
]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def texts(seed: int = 0, count: int = 40) -> list[str]:
    rng = random.Random(seed)
    marks = [" ", "  ", "\n", "\t", ", ", "! ", "'s ", " 123 ", "\u00a0", "\u3000", " 🙂 ", "\r\n\r\n"]
    return ["".join(rng.choice(WORDS) + rng.choice(marks) for _ in range(rng.randrange(400))) for _ in range(count)]


def trained(before, vocab_size: int = 400) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = before
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(texts(), trainer)
    return inner


def split(pattern: str):
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.mark.parametrize("before", [pre_tokenizers.ByteLevel(add_prefix_space=False), split(GPT4)])
def test_the_same_ids(before) -> None:
    inner = trained(before)
    encode = Bulk(FastTokenizer(inner, TokenizerConfig(end_token=END)))
    assert encode.fast is not None
    strange = ["", " ", "\x00\x01", "e\u0301 ﬃ", "".join(map(chr, range(0x20, 0x3000, 7))), "a" * 5000]
    every = texts(1) + strange
    for text, ids in zip(every, encode(every), strict=True):
        assert ids.tolist() == inner.encode(text, add_special_tokens=False).ids


def test_a_special_token_spelt_out_in_a_text() -> None:
    tokenizer = train_bpe(texts(), TokenizerConfig(kind=TokenizerKind.bpe, vocab_size=350, end_token=END))
    encode = Bulk(tokenizer)
    assert encode.fast is not None
    (ids,) = encode([f"undo{END}redo"])
    assert tokenizer.end_id in ids
    np.testing.assert_array_equal(ids, tokenizer.encode_batch([f"undo{END}redo"])[0])


def test_what_could_differ_is_left_to_the_library() -> None:
    plain = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert fast_encoding(plain) is not None
    plain.normalizer = normalizers.Lowercase()
    assert fast_encoding(plain) is None
    assert fast_encoding(trained(pre_tokenizers.ByteLevel(add_prefix_space=True))) is None
    assert fast_encoding(trained(pre_tokenizers.WhitespaceSplit())) is None
    assert Bulk(ByteTokenizer()).fast is None
    assert Bulk(ByteTokenizer())(["ab"])[0].tolist() == [97, 98]


def test_merges_that_ranks_do_not_tell() -> None:
    """xyz comes from (x, yz) alone, but xy is made first: by ranks xy and z would be merged, by pairs they are not."""
    inner = trained(pre_tokenizers.ByteLevel(add_prefix_space=False), vocab_size=257)
    vocab = inner.get_vocab()
    vocab |= {"xy": 257, "yz": 258, "xyz": 259}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("x", "y"), ("y", "z"), ("x", "yz")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert made.encode("xyz").ids == [257, vocab["z"]]
    assert fast_encoding(made) is None
