"""Packed rows as batches, the curriculum, and one global batch whatever the hosts."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from data.streams import END, Stream, Weighed
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit.config import ConfigError
from lmkit.config.sections.data import Curriculum, DataConfig, Packing, Source, SourceConfig
from lmkit.config.sections.objective import ObjectiveConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data.batches.packed import Packed, build_windows
from lmkit.data.batches.windows import Windows
from lmkit.data.prepare import TextData, prepare
from lmkit.data.store.tokens import HELDOUT, TRAIN
from lmkit.data.tokens.tokenizer import ByteTokenizer

T = 32
STREAMS = {
    "a": Stream(np.random.default_rng(0).geometric(1 / 15, 150)),
    "b": Stream(np.random.default_rng(1).geometric(1 / 60, 80)),
    "c": Stream([5] * 40 + [200]),
}


def batches_of(
    tmp: Path, names: str = "abc", seed: int = 0, batch_size: int = 8, parts: dict | None = None, **changes
) -> Windows:
    parts = {name: SourceConfig(paths=["x"], **(parts or {}).get(name, {})) for name in names}
    settings_ = {"seq_len": T, "packing": Packing.best_fit, "cache_dir": str(tmp), "mixture": parts} | changes
    data = TextData(ByteTokenizer(), {n: STREAMS[n] for n in names}, {n: parts[n].weight for n in names})  # type: ignore
    return build_windows(data, DataConfig(**settings_), ObjectiveConfig(), seed, batch_size)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_an_epoch_of_rows_predicts_every_token_once(cache: Path) -> None:
    batches = batches_of(cache, "b")
    assert isinstance(batches, Packed)
    count = batches.layouts["b"].num_rows
    for epoch in range(2):
        batch = batches.train(epoch, count, np.arange(count))
        got = sorted(zip(batch["inputs"][batch["weights"] > 0], batch["targets"][batch["weights"] > 0], strict=True))
        stream = STREAMS["b"].all
        assert got == sorted(itertools.pairwise(stream.tolist()))
    assert not np.array_equal(batch["inputs"], batches.train(0, count, np.arange(count))["inputs"])


def test_a_row_is_its_pieces_and_then_padding(cache: Path) -> None:
    batches = batches_of(cache, "c")
    batch, stream = batches.train(3, 8, np.arange(8)), STREAMS["c"].all
    assert {name: (array.shape[1:], array.dtype) for name, array in batch.items()} == batches.shapes()
    for row in range(8):
        at = 0
        for number, (start, count) in enumerate(batches.origin(3 * 8 + row).pieces, 1):
            place = slice(at, at + count - 1)
            assert batch["inputs"][row, place].tolist() == stream[start : start + count - 1].tolist()
            assert batch["targets"][row, place].tolist() == stream[start + 1 : start + count].tolist()
            assert (batch["segment_ids"][row, place] == number).all()
            assert (batch["weights"][row, place] == 1).all()
            at = place.stop
        for name, value in (("inputs", END), ("targets", END), ("segment_ids", 0), ("weights", 0)):
            assert (batch[name][row, at:] == value).all()
    assert (batch["segment_ids"].max(axis=1) == 5).any(), "five documents of six places fit into 32"
    assert "segment_ids" not in batches_of(cache, "c", isolate_documents=False).train(0, 8, np.arange(8))


def test_weights_belong_to_targets(cache: Path) -> None:
    """Of two parts, so that rows of one store stand between those of the other."""
    stores = {"a": Weighed([5, 40, 3, 11, 9, 20]), "b": Weighed([7] * 9)}
    data = TextData(ByteTokenizer(), stores, {"a": 1.0, "b": 1.0})  # type: ignore[arg-type]
    parts = {name: SourceConfig(paths=["x"]) for name in stores}
    config = DataConfig(seq_len=T, packing=Packing.best_fit, cache_dir=str(cache), mixture=parts)
    batches = build_windows(data, config, ObjectiveConfig(), 0, 8)
    batch, seen = batches.train(0, 8, np.arange(8)), set()
    for row in range(8):
        origin = batches.origin(row)
        seen.add(origin.part)
        expected = [np.arange(start + 1, start + count) for start, count in origin.pieces]
        places = np.concatenate(expected)
        assert batch["weights"][row, : len(places)].tolist() == (places + 1).tolist()
        assert (batch["targets"][row, : len(places)] == stores[origin.part].all[places]).all()
        assert (batch["weights"][row, len(places) :] == 0).all()
    assert seen == {"a", "b"}


def longest(batches: Packed, rows: range) -> list[int]:
    return [max(count - 1 for _, count in batches.origin(row).pieces) for row in rows]


def test_the_first_epoch_goes_from_short_to_long(cache: Path) -> None:
    short = batches_of(cache, "a", curriculum=Curriculum.short_first)
    plain = batches_of(cache, "a")
    assert isinstance(short, Packed)
    assert isinstance(plain, Packed)
    count = short.layouts["a"].num_rows
    drawn = [short.order.draw(epoch * count, count).index for epoch in range(3)]
    assert all(np.array_equal(np.sort(one), np.arange(count)) for one in drawn), "every row once an epoch"
    lengths = np.array(longest(short, range(count)))
    edges = [share * count // 64 for share in range(65)]
    shares = [lengths[first:stop] for first, stop in itertools.pairwise(edges) if stop > first]
    assert all(one.max() <= two.min() for one, two in itertools.pairwise(shares))
    assert lengths[0] < lengths[-1]
    for epoch in (1, 2):
        assert np.array_equal(drawn[epoch], plain.order.draw(epoch * count, count).index)


def test_shares_of_the_first_epoch_are_shuffled() -> None:
    from lmkit.data.order.sampler import Order

    lengths = np.arange(64_000)
    order = Order([64_000], [1.0], 0, [lengths]).draw(0, 64_000).index
    assert np.array_equal(order // 1000, np.arange(64_000) // 1000)
    inside = order.reshape(64, 1000) % 1000
    assert abs(np.corrcoef(inside[0], np.arange(1000))[0, 1]) < 0.1
    assert not np.array_equal(inside[0], inside[1])
    equal = Order([64_000], [1.0], 0, [np.zeros(64_000)]).draw(0, 64_000).index
    assert abs(np.corrcoef(equal, np.arange(64_000))[0, 1]) < 0.02, "among equals the store's order is none"


PARTS = st.fixed_dictionaries({
    name: st.fixed_dictionaries({
        "weight": st.floats(0.1, 5), "final_weight": st.sampled_from([-1.0, 0.5, 4.0]),
        "max_epochs": st.sampled_from([0.0, 1.5, 40.0]) if name != "c" else st.just(0.0),
    }) for name in "abc"
})  # fmt: skip


@given(
    parts=PARTS, packing=st.sampled_from(Packing), curriculum=st.sampled_from(Curriculum), seed=st.integers(0, 9),
    batch_size=st.sampled_from([8, 24]), steps=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    step=st.integers(0, 1500),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_hosts_see_one_global_batch(cache: Path, parts, packing, curriculum, seed, batch_size, steps, step) -> None:
    """Any number of hosts, each begun anew at any step, has its rows of the same batch."""
    moving = any(part["final_weight"] >= 0 for part in parts.values())
    changes = {"anneal_from_step": min(steps), "anneal_to_step": max(max(steps), 1)} if moving else {}
    changes |= {"packing": packing, "curriculum": curriculum if packing is Packing.best_fit else Curriculum.none}

    def begin() -> Windows:
        return batches_of(cache, "abc", seed, batch_size, parts, **changes)

    before = begin()
    for one in range(max(step - 2, 0), step):  # what came before a step leaves no trace
        before.train(one, batch_size, np.arange(batch_size))
    whole = before.train(step, batch_size, np.arange(batch_size))
    for hosts in (1, 2, 4, 8):
        rows = np.random.default_rng(seed).permutation(batch_size).reshape(hosts, -1)
        for own in rows:
            mine = begin().train(step, batch_size, own)
            for name, array in whole.items():
                np.testing.assert_array_equal(mine[name], array[own], err_msg=name)


def test_rows_of_a_real_store(corpus: Path, tmp_path: Path) -> None:
    config = DataConfig(
        source=Source.text_files, paths=[str(corpus)], cache_dir=str(tmp_path / "c"), seq_len=64, holdout_every=5,
        packing=Packing.best_fit,
    )  # fmt: skip
    text = prepare(config, TokenizerConfig(kind=TokenizerKind.bytes))
    batches, store = build_windows(text, config, ObjectiveConfig(), 0, 8), text.stores["text"]
    assert isinstance(batches, Packed)
    count = batches.layouts["text"].num_rows
    batch = batches.train(0, count, np.arange(count))
    stream = store.windows(TRAIN, [0], store.num_tokens(TRAIN))[0]
    assert np.array_equal(np.sort(batch["targets"][batch["weights"] > 0]), np.sort(stream[1:]))
    windows = Windows(text.stores, text.weights, text.tokenizer, config, ObjectiveConfig(), 0)
    index = np.arange(windows.num_heldout("text"))
    assert np.array_equal(batches.heldout("text", index)["targets"], windows.heldout("text", index)["targets"])
    assert store.num_tokens(HELDOUT) - 1 == batches.heldout("text", index)["weights"].sum()


def test_a_split_without_documents_is_refused(cache: Path) -> None:
    class Nothing(Stream):
        def lazy_ends(self, split: str) -> np.ndarray:
            return np.zeros(0, np.int64)

    data = TextData(ByteTokenizer(), {"x": Nothing([3])}, {"x": 1.0})  # type: ignore[dict-item]
    config = DataConfig(seq_len=T, packing=Packing.best_fit, cache_dir=str(cache))
    with pytest.raises(ConfigError, match="'x' leaves no document"):
        build_windows(data, config, ObjectiveConfig(), 0, 8)
