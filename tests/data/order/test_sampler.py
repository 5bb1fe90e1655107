"""(seed, step) -> the global batch: a pure function, whatever the number of hosts or where one starts."""

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
from data.streams import Weighed
from hypothesis import given, settings
from hypothesis import strategies as st

from lmkit.config import ConfigError
from lmkit.config.sections.data import DataConfig, Packing, Source
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.objective import ObjectiveConfig, ObjectiveKind
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.data import loader
from lmkit.data.batches.packed import build_windows
from lmkit.data.batches.windows import Windows, make_batch
from lmkit.data.loader import (
    TrainBatches,
    batch_shapes,
    batches_ahead,
    check_shared_memory,
    heldout_batches,
    host_rows,
    to_devices,
)
from lmkit.data.order.sampler import Order, Sampler, permute
from lmkit.data.prepare import TextData, prepare
from lmkit.data.store.tokens import HELDOUT, TRAIN
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of


@given(st.integers(1, 3000), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permute_looks_random() -> None:
    order = permute(np.arange(100_000), 100_000, 1)
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.01
    assert abs(np.mean(np.diff(order) > 0) - 0.5) < 0.01
    assert np.mean(order == permute(np.arange(100_000), 100_000, 2)) < 1e-3


@given(st.integers(65, 5000), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_an_epoch_visits_every_window_once(tokens: int, seed: int) -> None:
    sampler = Sampler([tokens], [1.0], 64, seed)
    windows = int(sampler.windows[0])
    for epoch in range(3):
        rows = sampler.rows(epoch * windows, windows)
        assert set(rows.epoch) == {epoch}
        starts = np.sort(rows.start)
        assert len(set(starts)) == windows
        assert (np.diff(starts) == 64).all()
        assert starts[0] >= 0
        assert starts[-1] + 65 <= tokens
        assert windows * 64 >= tokens - 2 * 64, "at most two windows' worth is left out of an epoch"


def test_epochs_cut_elsewhere_and_in_another_order() -> None:
    sampler = Sampler([10_000], [1.0], 64, 0)
    windows = int(sampler.windows[0])
    first, second = sampler.rows(0, windows).start, sampler.rows(windows, windows).start
    assert first[0] % 64 != second[0] % 64
    assert not np.array_equal(np.argsort(first), np.argsort(second))


@given(
    st.lists(st.floats(0.05, 10), min_size=1, max_size=4),
    st.integers(0, 500),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_hosts_see_the_rows_of_one_global_batch(weights: list[float], step: int, hosts: int, seed: int) -> None:
    sampler = Sampler([2000 + 500 * i for i in range(len(weights))], weights, 32, seed)
    whole = sampler.batch(step, 16)
    for host in range(hosts):
        own = slice(host * 16 // hosts, (host + 1) * 16 // hosts)
        part = sampler.rows(step * 16 + own.start, own.stop - own.start)
        for a, b in zip(whole, part, strict=True):
            np.testing.assert_array_equal(a[own], b)


def test_mixture_shares_are_exact_and_each_part_runs_its_own_epochs() -> None:
    sampler = Sampler([2000, 700, 900], [0.5, 0.3, 0.2], 32, 0)
    rows = sampler.rows(0, 10 * 1024)
    assert np.bincount(rows.part).tolist() == [5120, 3072, 2048]
    for part in range(3):
        own = rows.start[rows.part == part]
        windows = int(sampler.windows[part])
        assert len(set(own[:windows])) == windows


def test_the_order_follows_the_seed() -> None:
    """The order of the elements themselves; where windows begin depends on the seed, too."""
    one, two = (Order([10_000], [1.0], seed).at(np.arange(64)).index for seed in (0, 1))
    assert np.mean(one == two) < 0.1


def test_seeds_differ() -> None:
    one, two = (Sampler([10_000], [1.0], 64, seed).batch(3, 32).start for seed in (0, 1))
    assert not np.array_equal(one, two)


@pytest.fixture
def data(corpus: Path, tmp_path: Path) -> tuple[TextData, DataConfig]:
    config = DataConfig(
        source=Source.text_files, paths=[str(corpus)], cache_dir=str(tmp_path / "c"), seq_len=32, holdout_every=5
    )
    return prepare(config, TokenizerConfig(kind=TokenizerKind.bytes)), config


def windows(data: tuple[TextData, DataConfig], seed: int = 0, **objective) -> Windows:
    text, config = data
    return Windows(text.stores, text.weights, text.tokenizer, config, ObjectiveConfig(**objective), seed)


def test_batches_hold_what_the_sampler_says(data: tuple[TextData, DataConfig]) -> None:
    batches = windows(data, seed=3)
    stream = data[0].stores["text"].windows(TRAIN, [0], data[0].stores["text"].num_tokens(TRAIN))[0]
    for step in (0, 9):
        batch = batches.train(step, 8, np.arange(8))
        for row, start in enumerate(batches.sampler.batch(step, 8).start):
            np.testing.assert_array_equal(batch["inputs"][row], stream[start : start + 32])
            np.testing.assert_array_equal(batch["targets"][row], stream[start + 1 : start + 33])


def test_weights_belong_to_targets() -> None:
    """In training and in held-out windows, of which the last one is not full."""
    store: Any = Weighed([30, 5, 12])
    batches = Windows({"a": store}, {"a": 1.0}, ByteTokenizer(), DataConfig(seq_len=8), ObjectiveConfig(), 0)
    count = batches.num_heldout("a")
    starts = [batches.sampler.batch(2, 4).start, np.arange(count) * 8]
    for batch, first in zip(
        (batches.train(2, 4, np.arange(4)), batches.heldout("a", np.arange(count))), starts, strict=True
    ):
        places = first[:, None] + 1 + np.arange(8)
        inside = places < len(store.all)
        np.testing.assert_array_equal(batch["weights"], np.where(inside, places + 1, 0))
        np.testing.assert_array_equal(batch["targets"][inside], store.all[places[inside]])
    assert not inside.all()


def test_masks_differ_by_visit_and_seed() -> None:
    """Every row is the same window; in held-out rows the places alone are compared."""
    store, long = (cast("Any", Weighed([length])) for length in (63, 300))
    store.weighed = long.weighed = False
    objective = ObjectiveConfig(kind=ObjectiveKind.masked_lm)

    def windows_of(store: Any, seed: int) -> Windows:
        tokenizer = ByteTokenizer(mask=True)
        return Windows({"a": store}, {"a": 1.0}, tokenizer, DataConfig(seq_len=64), objective, seed)

    def masks(seed: int) -> set[bytes]:
        found = [windows_of(store, seed).train(step, 4, np.arange(4)) for step in (0, 1)]
        return {np.sort(row).tobytes() for one in found for row in one["masked_positions"]}

    def held_out(seed: int) -> list[list[int]]:
        return windows_of(long, seed).heldout("a", np.array([1, 1, 2]))["masked_positions"].tolist()

    assert len(masks(0)) == 8
    assert masks(0) == masks(0)
    assert masks(0).isdisjoint(masks(1))
    first, again, other = held_out(0)
    assert first == again != other
    assert held_out(0) == held_out(1), "the same in every evaluation"


def test_segments_begin_at_end_tokens() -> None:
    tokens = np.array([[5, 6, 0, 7, 8, 0, 9]])
    batch = make_batch(tokens, 0, isolate=True)
    assert batch["segment_ids"].tolist() == [[0, 0, 1, 1, 1, 2]]
    assert "segment_ids" not in make_batch(tokens, 0, isolate=False)


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize(("threads", "processes", "ahead"), [(1, 0, 1), (4, 0, 7), (1, 2, 4)])
def test_loader_gives_the_same_batches_from_any_step_on_any_mesh(
    data: tuple[TextData, DataConfig], threads: int, processes: int, ahead: int, packing: Packing
) -> None:
    data[1].read_threads, data[1].read_processes, data[1].prefetch = threads, processes, ahead
    data[1].packing = packing
    source = build_windows(*data, ObjectiveConfig(), 0, 8)
    for mesh_config in (MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)):
        mesh = build_mesh(mesh_config)
        got = list(TrainBatches(source, data[1], first_step=5, steps=12, batch_size=8, mesh=mesh))
        assert len(got) == 7
        for step, batch in enumerate(got, 5):
            assert {name: array.sharding for name, array in batch.items()} == {
                name: shape.sharding for name, shape in batch_shapes(source, 8, mesh).items()
            }
            for name, expected in source.train(step, 8, np.arange(8)).items():
                np.testing.assert_array_equal(batch[name], expected)


def test_batches_ahead_keep_to_the_budget(data: tuple[TextData, DataConfig]) -> None:
    shapes = batch_shapes(windows(data), 2048, build_mesh(MeshConfig()))
    size = 4 * 4 * 32 * 2048  # four arrays of four bytes
    config = dataclasses.replace(data[1], prefetch=7, memory_mb=5)
    assert batches_ahead(config, shapes, 2048) == 2_500_000 // size == 2
    assert batches_ahead(config, shapes, 1024) == 4  # of two hosts
    assert batches_ahead(dataclasses.replace(config, memory_mb=100), shapes, 2048) == 7
    with pytest.raises(ConfigError, match=r"data.memory_mb=1: one batch takes 1 MB.*data.memory_mb=3"):
        batches_ahead(dataclasses.replace(config, memory_mb=1), shapes, 2048)


def test_waiting_is_measured(data: tuple[TextData, DataConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = windows(data), Windows.train

    def slow(self: Windows, *args) -> dict[str, np.ndarray]:
        time.sleep(0.1)
        return real(self, *args)

    monkeypatch.setattr(Windows, "train", slow)
    config = dataclasses.replace(data[1], read_threads=1, prefetch=1)
    batches = TrainBatches(source, config, first_step=0, steps=5, batch_size=8, mesh=build_mesh(MeshConfig()))
    assert batches.waited_sec == 0
    list(batches)
    assert batches.waited_sec > 0.3


def test_host_rows_are_those_of_its_devices() -> None:
    sharding = sharding_of(("batch", "seq"), build_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    np.testing.assert_array_equal(host_rows(sharding, (8, 32)), np.arange(8))


@pytest.mark.parametrize("hosts", [2, 4])
def test_a_host_has_its_rows_of_the_global_batch_in_order(hosts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host h of H, whose devices follow each other in the mesh, has rows h B / H up to (h + 1) B / H."""
    sharding, whole = sharding_of(("batch", "seq"), build_mesh(MeshConfig(data=8))), np.arange(48).reshape(16, 3)
    shapes = {"inputs": jax.ShapeDtypeStruct(whole.shape, np.int32, sharding=sharding)}
    everywhere = sharding.devices_indices_map(whole.shape)
    monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, sharding, local: local)
    for host in range(hosts):
        here = {device: index for device, index in everywhere.items() if device.id * hosts // 8 == host}
        alone: Any = SimpleNamespace(addressable_devices_indices_map=lambda shape, here=here: here)
        rows = host_rows(alone, whole.shape)
        np.testing.assert_array_equal(rows, np.arange(host * 16 // hosts, (host + 1) * 16 // hosts))
        local: Any = to_devices({"inputs": whole[rows]}, rows, shapes)["inputs"]
        for index in here.values():
            np.testing.assert_array_equal(local(index), whole[index])


def test_every_held_out_token_is_predicted_once(data: tuple[TextData, DataConfig]) -> None:
    store = data[0].stores["text"]
    mesh, source = build_mesh(MeshConfig(), jax.devices()[:1]), windows(data)
    seen = []
    for _, batch in heldout_batches(source, ["text"], batch_size=8, limit=0, mesh=mesh):
        seen.append(np.asarray(batch["targets"])[np.asarray(batch["weights"]) > 0])
    stream = store.windows(HELDOUT, [0], store.num_tokens(HELDOUT))[0]
    np.testing.assert_array_equal(np.concatenate(seen), stream[1:])
    assert len(list(heldout_batches(source, ["text"], batch_size=8, limit=3, mesh=mesh))) == 3


def test_text_shorter_than_a_row_is_refused(data: tuple[TextData, DataConfig]) -> None:
    data[1].seq_len = 10_000_000
    with pytest.raises(ConfigError, match=r"data.seq_len=10000000.*tokens"):
        windows(data)


def test_shared_memory_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_shared_memory(DataConfig(read_processes=1))
    monkeypatch.setattr(loader, "_SHARED", "/nowhere")
    with pytest.raises(ConfigError, match=r"data.read_processes=1: .* /nowhere, .*; set data.read_processes=0"):
        check_shared_memory(DataConfig(read_processes=1))


def test_the_largest_seed_is_a_seed_of_its_own() -> None:
    orders = [Order([50], [1.0], seed).at(np.arange(50)).index.tolist() for seed in (0, 1, 2**32 - 2, 2**32 - 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
