"""Mixtures: the course of weights, caps, and a table in which any row is found."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, SourceConfig
from lmkit.data.order.mixing import BLOCK, Course, Deal, check_lasts, course_of
from lmkit.data.order.sampler import Order, Sampler


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(one, "<i8").tobytes() for one in arrays)).hexdigest()[:16]


# Made by the order as it was before caps and courses: digests of (part, epoch, start) of rows 0 to 4,999 and of 3,000
# rows from 10^9 + 17 on. They change only with the order itself: then every run that goes on sees other rows.
GOLDEN = [
    ([5000], [1.0], 64, 0, "620cf5229b4d26a5", "fe5e54f474051dd8"),
    ([2000, 700, 900], [0.5, 0.3, 0.2], 32, 7, "d930990591f0911c", "7664471c635e6d16"),
    ([100_000, 40_000], [3.0, 0.001], 128, 2**40 + 1, "4e2d8b55ed9cd362", "2133a961f4fc1732"),
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
    assert digest(*Order([10, 300, 7], [1.0, 2.0, 0.25], 5).draw(1000, 3000)) == "9c05dc2e5380333d"


COUNTS = np.array([700, 5000, 90_000])
courses = st.builds(
    lambda weights, final, rows, caps: Course(weights, final, (min(rows), max(rows)), [*caps, 0.0]),
    st.lists(st.floats(0.05, 10), min_size=3, max_size=3),
    st.one_of(st.just(()), st.lists(st.floats(0.05, 10), min_size=3, max_size=3)),
    st.tuples(st.integers(0, 40_000), st.integers(0, 40_000)),
    st.tuples(st.sampled_from([0.0, 0.3, 1.0, 2.5]), st.sampled_from([0.0, 0.5, 1.0])),
)


@given(courses, st.integers(0, 99))
@settings(max_examples=40, deadline=None)
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
