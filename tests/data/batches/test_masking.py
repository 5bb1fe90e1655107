"""Hidden tokens, cut-out spans and sentence pairs: pure functions with the shares that their papers give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit.config.sections.tokenizer import TokenizerConfig
from lmkit.data.batches.masking import Masker, Pairer, SpanCutter, span_lengths
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.data.tokens.vocabulary import train_bpe

BYTES = ByteTokenizer(mask=True, sentinels=40)
KEYS = np.arange(64, dtype=np.uint64)


def letters(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(97, 123, (rows, length), dtype=np.int32)


def test_a_share_is_hidden_and_the_rest_is_as_it_was() -> None:
    tokens = letters(64, 100)
    tokens[:, 40] = BYTES.end_id
    out = Masker(BYTES, 0.15, words=False)(tokens, np.ones(tokens.shape, bool), KEYS)
    assert out["masked_positions"].shape == (64, 15)
    assert (out["weights"] == 1).all()
    assert (out["masked_positions"] != 40).all(), "the end of a document is never hidden"
    assert all(len(set(row)) == 15 for row in out["masked_positions"])
    np.testing.assert_array_equal(np.take_along_axis(tokens, out["masked_positions"], 1), out["targets"])
    seen = np.take_along_axis(out["inputs"], out["masked_positions"], 1)
    assert np.mean(seen == BYTES.mask_id) == pytest.approx(0.8, abs=0.05)
    assert np.mean(seen == out["targets"]) == pytest.approx(0.1, abs=0.04)
    untouched = np.ones(tokens.shape, bool)
    np.put_along_axis(untouched, out["masked_positions"], False, axis=1)
    np.testing.assert_array_equal(out["inputs"][untouched], tokens[untouched])


def test_short_rows_hide_their_share_only() -> None:
    tokens, inside = letters(64, 100), np.zeros((64, 100), bool)
    inside[:, :20] = True
    out = Masker(BYTES, 0.15, words=False)(tokens, inside, KEYS)
    assert (out["weights"].sum(1) == 3).all()
    assert (out["masked_positions"][out["weights"] == 1] < 20).all()
    np.testing.assert_array_equal(out["inputs"][~inside], tokens[~inside])


def test_every_visit_hides_others_and_every_repeat_the_same() -> None:
    tokens, masker = letters(4, 50), Masker(BYTES, 0.15, words=False)
    inside = np.ones(tokens.shape, bool)
    first, again = (masker(tokens, inside, KEYS[:4])["masked_positions"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, masker(tokens, inside, KEYS[4:8])["masked_positions"])
    alone = masker(tokens[2:3], inside[2:3], KEYS[2:3])["masked_positions"]
    np.testing.assert_array_equal(alone[0], first[2], "a row depends on its own key alone")


def words_of(text: str, tokenizer) -> tuple[np.ndarray, list[int]]:
    """Tokens and the number of the word each belongs to."""
    ids = tokenizer.encode_batch([text])[0]
    number, numbers, joined = -1, [], ""
    for i in ids:
        piece = tokenizer.decode([int(i)])
        new = not joined or not (joined[-1].isalnum() and piece[0].isalnum())
        number += new
        numbers.append(number)
        joined += piece
    return ids, numbers


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_whole_words_are_hidden_together(kind: str) -> None:
    text = "the quick brown fox, jumped over 12 lazy dogs; unbelievable internationalisation (really)! " * 3
    config = TokenizerConfig(vocab_size=280, mask_token="<mask>")
    tokenizer = BYTES if kind == "bytes" else train_bpe([text], config)
    ids, numbers = words_of(text, tokenizer)
    tokens = ids[None].repeat(64, 0).astype(np.int32)
    out = Masker(tokenizer, 0.2, words=True)(tokens, np.ones(tokens.shape, bool), KEYS)
    for places, weights in zip(out["masked_positions"], out["weights"], strict=True):
        chosen = set(places[weights == 1].tolist())
        parts = [{p for p, n in enumerate(numbers) if n == word} for word in {numbers[p] for p in chosen}]
        broken = [word for word in parts if not word <= chosen]
        assert len(broken) <= 1, "only the last word may be cut by the row's share"


def test_wordpieces_go_on_after_two_hashes() -> None:
    import tokenizers

    vocabulary = {"[UNK]": 0, "[MASK]": 1, "[SEP]": 2, "play": 3, "##ing": 4, "ing": 5}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    from lmkit.data.tokens.tokenizer import FastTokenizer

    goes_on, joins = FastTokenizer(inner, TokenizerConfig(end_token="[SEP]", mask_token="[MASK]")).continues_word()
    assert goes_on.tolist() == [False, False, False, False, True, False]
    assert joins[3]


@given(st.integers(8, 600), st.floats(0.05, 0.5), st.floats(1, 8))
@settings(max_examples=80, deadline=None)
def test_spans_fill_the_source(seq_len: int, share: float, mean: float) -> None:
    raw, spans, target = span_lengths(seq_len, share, mean)
    noise = target - 1 - spans
    assert raw - noise + spans + 1 <= seq_len
    assert spans <= noise < raw
    assert spans <= raw - noise
    more = span_lengths(seq_len + 2, share, mean)
    assert more[0] >= raw


def test_t5s_own_lengths() -> None:
    """512 tokens of source are made of 568 raw ones, with 114 of target (Raffel et al. 2020, section 3.1.4)."""
    assert span_lengths(512, 0.15, 3.0) == (568, 28, 114)


def test_source_and_target_put_the_row_together_again() -> None:
    cutter = SpanCutter(BYTES, 64, 0.15, 3.0)
    tokens = letters(32, cutter.raw)
    out = cutter(tokens, KEYS[:32])
    assert out["source"].shape == (32, 64)
    assert (out["inputs"][:, 0] == BYTES.start_id).all()
    np.testing.assert_array_equal(out["inputs"][:, 1:], out["targets"][:, :-1])
    for row in range(32):
        spans, current = {}, None
        for token in out["targets"][row, :-1].tolist():
            if token in BYTES.sentinel_ids:
                current = spans.setdefault(token, [])
            else:
                current.append(token)
        source = out["source"][row].tolist()
        whole = [y for x in source[: source.index(BYTES.end_id)] for y in spans.get(x, [x])]
        assert whole == tokens[row].tolist()
        assert list(spans) == BYTES.sentinel_ids[: cutter.spans], "in order"
    assert len({tuple(row) for row in (out["source"] >= 258).tolist()}) > 20, "the spans are elsewhere in each row"


def test_pairs_follow_each_other_or_do_not() -> None:
    tokens, others = letters(64, 61), np.full((64, 61), 65, np.int32)
    tokens[:, 20] = BYTES.end_id  # a document ends there: both parts come from what is after it
    out = Pairer(BYTES, 64)(tokens, others, KEYS)
    follows = 0
    for row in range(64):
        whole = out["tokens"][row][out["segment_ids"][row] == 1].tolist()
        first, second, rest = _split(whole, BYTES.end_id)
        assert whole[0] == BYTES.start_id
        assert rest == []
        assert 1 + len(first) + 1 == np.flatnonzero(out["types"][row])[0]
        assert first == tokens[row, 21 : 21 + len(first)].tolist()
        if out["next_sentence"][row] == 0:
            follows += 1
            assert first + second == tokens[row, 21:].tolist()
        else:
            assert set(second) == {65}
    assert 20 < follows < 44


def _split(whole: list[int], end: int) -> tuple[list[int], list[int], list[int]]:
    body = whole[1:]
    cut = body.index(end)
    last = body.index(end, cut + 1)
    return body[:cut], body[cut + 1 : last], body[last + 1 :]
