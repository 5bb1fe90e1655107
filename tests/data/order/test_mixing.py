"""Mixtures: the course of weights, caps, and a table in which any row is found."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, SourceConfig
from lmkit.data.order.mixing import BLOCK, Course, Deal, asked_shares, check_lasts, course_of
from lmkit.data.order.sampler import Order, Sampler


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(one, "<i8").tobytes() for one in arrays)).hexdigest()[:16]


# Digests of (part, epoch, start) of rows 0 to 4,999 and of 3,000 rows from 10^9 + 17 on. They change only with the
# order itself (then mixing.FORMAT goes up): every run that goes on would see other rows. The first and the last are as
# old as the order; the others were made when shares below a row of a block were first dealt.
GOLDEN = [
    ([5000], [1.0], 64, 0, "620cf5229b4d26a5", "fe5e54f474051dd8"),
    ([2000, 700, 900], [0.5, 0.3, 0.2], 32, 7, "97df6e9c8bbf01c2", "913e88a17d02d977"),
    ([100_000, 40_000], [3.0, 0.001], 128, 2**40 + 1, "9d143c3aa62e37d7", "e132ec78aadb7763"),
    ([900, 900], [1.0, 0.0], 16, 3, "a1a48b0c91939a75", "ece5335a20eb9f84"),
]


@pytest.mark.parametrize(("sizes", "weights", "seq_len", "seed", "first", "later"), GOLDEN)
def test_without_caps_and_courses_the_order_is_as_ever(sizes, weights, seq_len, seed, first, later) -> None:
    sampler = Sampler(sizes, weights, seq_len, seed)
    assert digest(*sampler.rows(0, 5000)) == first
    assert digest(*sampler.rows(10**9 + 17, 3000)) == later
    still = Sampler(sizes, Course(weights, (), (100, 200), [0.0] * len(sizes)), seq_len, seed)
    assert digest(*still.rows(0, 5000)) == first


def test_records_keep_their_order() -> None:
    assert digest(*Order([10, 300, 7], [1.0, 2.0, 0.25], 5).draw(1000, 3000)) == "4a9f57ec31408346"


COUNTS = np.array([700, 5000, 90_000])
courses = st.builds(
    lambda weights, final, rows, caps: Course(weights, final, (min(rows), max(rows)), [*caps, 0.0]),
    st.lists(st.floats(0.05, 10), min_size=3, max_size=3),
    st.one_of(st.just(()), st.lists(st.floats(0.05, 10), min_size=3, max_size=3)),
    st.tuples(st.integers(0, 40_000), st.integers(0, 40_000)),
    st.tuples(st.sampled_from([0.0, 0.3, 1.0, 2.5]), st.sampled_from([0.0, 0.5, 1.0])),
)


@given(courses, st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_part_is_counted_through_and_never_beyond_its_cap(course: Course, seed: int) -> None:
    deal = Deal(COUNTS, course, seed)
    assert deal.num_rows is None
    assert len(deal.first) < 64 + 2 * 3 + 2, "a table, not a list of blocks"
    rows = np.arange(60 * BLOCK)
    part, number = deal(rows)
    for p, cap in enumerate(course.max_epochs):
        mine = number[part == p]
        per_block = part.reshape(-1, BLOCK) == p
        assert np.array_equal(np.sort(mine), np.arange(len(mine))), "no gap, nothing twice"
        assert np.array_equal(np.sort(number[: 20 * BLOCK][part[: 20 * BLOCK] == p]), np.arange(per_block[:20].sum()))
        if cap:
            assert len(mine) <= round(cap * COUNTS[p])
    again = np.random.default_rng(seed).permutation(rows)[:500]
    assert np.array_equal(np.stack(deal(again)), np.stack([part[again], number[again]])), "any rows, in any order"


weights_of_any_size = st.lists(st.floats(-7, 0).map(lambda power: 10.0**power), min_size=2, max_size=60)


@given(weights_of_any_size, st.integers(0, 3000), st.integers(0, BLOCK))
@settings(max_examples=60, deadline=None)
def test_every_weight_gets_its_share_however_small(weights: list[float], blocks: int, more: int) -> None:
    deal = Deal(np.full(len(weights), 10**9), Course(weights), 0)
    shares = np.array(weights) / sum(weights)
    rows = blocks * BLOCK
    now, later = deal.dealt(rows), deal.dealt(rows + more)
    assert now.sum() == rows
    assert later.sum() == rows + more
    assert (later >= now).all(), "more rows never give a part fewer"
    assert (np.abs(now - shares * rows) < 2.5 + len(weights) * shares).all(), "a row, and the few by which x is off"
    part, _ = deal(np.arange(rows, rows + more))
    assert np.array_equal(np.bincount(part, minlength=len(weights)), later - now)


def test_weights_below_a_row_of_a_block_are_drawn() -> None:
    small = [0.9990, 0.0006, 0.0004]
    assert Deal(np.full(3, 10**9), Course(small), 0).dealt(2_048_000).tolist() == [2_045_951, 1_229, 820]
    many = Deal(np.full(201, 10**9), Course([0.92] + [0.0004] * 200), 0).dealt(204_800)
    assert abs(many[0] - 0.92 * 204_800) < 3
    assert set(many[1:].tolist()) == {81, 82}, "0.0004 of 204,800 is 81.9"


def test_shares_go_on_through_the_levels_of_a_course() -> None:
    """Each level is a few blocks, in which this part is owed less than a row: what it is owed goes on to the next."""
    course = Course([0.9996, 0.0004], [0.9, 0.1], (0, 63 * 2 * BLOCK))
    levels = [0.0004 + level / 63 * 0.0996 for level in range(64)]
    asked = sum(weight * BLOCK * (1 if level in (0, 63) else 2) for level, weight in enumerate(levels))
    assert abs(Deal(np.full(2, 10**9), course, 0).dealt(63 * 2 * BLOCK)[1] - asked) < 2


def test_what_was_asked_is_the_mean_of_the_line_that_weights_follow() -> None:
    assert asked_shares(Course([3.0, 1.0]), 10).tolist() == [0.75, 0.25]
    half = asked_shares(Course([1.0, 0.0], [0.0, 1.0], (1000, 1000)), 2000)
    np.testing.assert_allclose(half, 0.5, atol=1e-3)
    # half of the rows at 1:0, half along the line to its middle: 1/2 + 1/2 of the mean of (1 - u) / (1 + 2u), u to 1/2
    asked = asked_shares(Course([1.0, 0.0], [0.0, 3.0], (500, 1500)), 1000)
    np.testing.assert_allclose(asked, [0.76986, 0.23014], atol=1e-4)


def test_a_capped_part_gives_its_rows_to_the_others() -> None:
    deal = Deal(np.array([1000, 10**6, 10**6]), Course([2.0, 1.0, 1.0], max_epochs=[3.0, 0.0, 0.0]), 0)
    part, _ = deal(np.arange(20 * BLOCK))
    shares = np.stack([np.bincount(one, minlength=3) for one in part.reshape(-1, BLOCK)])
    assert shares[:5].tolist() == [[512, 256, 256]] * 5
    assert shares[5].tolist() == [3000 - 5 * 512, 292, 292]
    assert (shares[6:] == [0, 512, 512]).all()


def test_weights_go_along_a_line() -> None:
    first, last = 10 * BLOCK, 1010 * BLOCK
    deal = Deal(np.array([10**6, 10**6]), Course([1.0, 0.0], [0.0, 1.0], (first, last)), 0)
    for block in (0, 9, 10, 200, 510, 777, 1009, 1010, 5000):
        (part, _) = deal(np.arange(block * BLOCK, (block + 1) * BLOCK))
        line = np.clip((block + 0.5 - 10) / 1000, 0, 1)
        assert abs(part.mean() - line) <= 0.5 / 63 + 1 / BLOCK, block
    assert deal(np.arange(9 * BLOCK))[0].sum() == 0, "not before anneal_from_step"
    assert deal(np.arange(1010 * BLOCK, 1011 * BLOCK))[0].all(), "there by anneal_to_step"
    assert len(deal.first) == 64
    short = Deal(np.array([10**6, 10**6]), Course([1.0, 0.0], [0.0, 1.0], (0, 4 * BLOCK)), 0)
    shares = short(np.arange(5 * BLOCK))[0].reshape(5, BLOCK).sum(axis=1)
    assert shares.tolist() == [round(level / 63 * BLOCK) for level in (8, 24, 39, 55, 63)], "by the middle of a block"


def test_what_ends_is_told_with_its_last_row() -> None:
    counts = np.array([1000, 1500])
    deal = Deal(counts, Course([1.0, 3.0], max_epochs=[2.0, 1.0]), 4)
    assert deal.num_rows == 3500
    part, number = deal(np.arange(3500))
    assert np.bincount(part).tolist() == [2000, 1500]
    assert all(np.array_equal(np.sort(number[part == p]), np.arange(n)) for p, n in ((0, 2000), (1, 1500)))
    assert Deal(counts, Course([1.0, 3.0], max_epochs=[2.0, 0.0]), 4).num_rows is None
    assert Deal(np.array([10]), Course([1.0], max_epochs=[2.5]), 4).num_rows == 25
    late = Course([1.0, 0.0], [1.0, 1.0], (10**6, 10**6), [1.0, 0.0])
    assert Deal(counts, late, 0).num_rows == 1000, "nothing has a weight until the second part does"
    check_lasts(3500, 35, 100)
    check_lasts(None, 10**9, 100)
    with pytest.raises(ConfigError, match=r"step 35 of train.steps=36.*train.steps=35 or less.*max_epochs"):
        check_lasts(3500, 36, 100)


def mixture(**changes) -> DataConfig:
    parts = {"a": SourceConfig(paths=["x"], final_weight=0.0, max_epochs=4), "b": SourceConfig(paths=["y"], weight=3.0)}
    return DataConfig(**({"mixture": parts, "anneal_from_step": 10, "anneal_to_step": 30} | changes))


def test_the_course_of_a_configuration() -> None:
    course = course_of(mixture(), {"a": 1.0, "b": 3.0}, 8)
    assert course == Course([1.0, 3.0], [0.0, 3.0], (80, 240), [4, 0.0])
    assert course_of(DataConfig(), {"text": 1.0}, 0) == Course([1.0], (), (0, 0), [0.0])


@pytest.mark.parametrize(("changes", "words"), [
    ({"anneal_to_step": 0, "anneal_from_step": 0}, ["data.mixture.a.final_weight=0.0", "data.anneal_to_step=0"]),
    ({"anneal_from_step": 31}, ["data.anneal_from_step=31", "data.anneal_to_step=30"]),
    ({"mixture": {}}, ["data.anneal_to_step=30", "final_weight"]),
    ({"mixture": {"a": SourceConfig(final_weight=0.0)}}, ["every final_weight is 0"]),
])  # fmt: skip
def test_courses_that_make_no_sense(changes: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        mixture(**changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)
