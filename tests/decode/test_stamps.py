"""Which tokens may come next where texts have time stamps; the incremental form says what the whole row says."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmkit.decode.stamps import Said, Stamps, after, nothing_said, said_in, with_stamps

# 0 to 5 text, 6 the end, 7 a special token, 8 no time stamps, 9 to 14 stamps
STAMPS, VOCAB = Stamps(first=9, end=6, plain=8, latest=2), 15


def said(tokens: list[int]) -> Said:
    found = nothing_said(jnp.zeros(1, jnp.int32))
    for token in tokens:
        found = after(found, jnp.array([token], jnp.int32), STAMPS)
    return found


def allowed(tokens: list[int], scores: np.ndarray | None = None) -> list[int]:
    scores = np.where(np.arange(VOCAB) < 9, 9.0, 0.0) if scores is None else scores  # text is likelier than any stamp
    found = with_stamps(jnp.asarray(scores, jnp.float32)[None], said(tokens), STAMPS)
    return np.flatnonzero(np.isfinite(found[0])).tolist()


TEXT, END, STAMP = [0, 1, 2, 3, 4, 5], [6, 7], [9, 10, 11, 12, 13, 14]


@pytest.mark.parametrize(("tokens", "expected"), [
    ([], [9, 10, 11]),  # a text begins with a stamp, not later than `latest`
    ([9], [*TEXT, *END]),  # which text follows, or nothing
    ([9, 1], [*TEXT, *END, *STAMP[1:]]),  # a segment has a length
    ([9, 1, 12], [*END, 12, 13, 14]),  # one that ends is followed by the start of the next, or nothing
    ([9, 1, 12, 12], [*TEXT, *END]),
    ([9, 1, 12, 13, 4], [*TEXT, *END, 14]),  # they do not go back
    ([9, 1, 14, 14, 4], [*TEXT, *END]),
])  # fmt: skip
def test_what_may_come_next(tokens: list[int], expected: list[int]) -> None:
    assert allowed(tokens) == expected


def test_a_stamp_comes_where_all_of_them_are_likelier_than_any_word() -> None:
    scores = np.where(np.arange(VOCAB) < 9, 1.0, 0.0)  # each stamp is less likely than a word, five of them are not
    assert allowed([9, 1], scores) == STAMP[1:]
    assert allowed([9, 1, 13, 13, 2], scores) == [*TEXT, *END, 14]


def test_a_row_says_what_its_tokens_one_by_one_say() -> None:
    rng = np.random.default_rng(0)
    for count in range(6):
        rows = rng.integers(0, VOCAB, (4, 6)).astype(np.int32)
        stamps = np.maximum.accumulate(np.where(rows >= STAMPS.first, rows, 0), axis=1)
        rows = np.where(rows >= STAMPS.first, stamps, rows)  # they do not go back
        rows[:, count:] = -1
        whole = said_in(jnp.asarray(rows), jnp.int32(count), STAMPS)
        for row, tokens in enumerate(rows):
            one = said(tokens[:count].tolist())
            names = ("count_R", "stamp_R", *(["last_R"] if count else []), *(["before_R"] if count > 1 else []))
            for name in names:
                assert int(getattr(one, name)[0]) == int(getattr(whole, name)[row]), name
