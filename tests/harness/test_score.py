"""Scores are those of the model, bit for bit the same whatever stands beside them; near the same on every mesh."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from helpers import params_of, rotated
from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.optim import OptimConfig
from lmkit.core.state import init_state, make_blueprint
from lmkit.harness.score import Item, PackedScorer, slot_length
from lmkit.models import build_model
from lmkit.parallel.mesh import build_mesh

CONFIG = GPTConfig(vocab_size=264, num_layers=2, num_heads=4, embed_dim=64, max_seq_len=48, init_std=0.3)
MOST = 48


def make_items(count: int) -> list[Item]:
    """Of all lengths; some share what is read, some score one token and some all."""
    rng, items = np.random.default_rng(0), []
    for number in range(count):
        tokens = tuple(rng.integers(0, 264, int(rng.integers(1, MOST + 1))).tolist())
        scored = 1 if number % 3 else int(rng.integers(1, len(tokens) + 1))
        items.append(Item(tokens, tuple(rng.integers(0, 264, scored).tolist())))
        if number % 4 == 0:
            items.append(Item(tokens, tuple(rng.integers(0, 264, scored).tolist())))
    return items


@pytest.fixture(scope="module")
def scored() -> tuple[Any, Any, list[Item], list]:
    graph, params = params_of(build_model(CONFIG, nnx.Rngs(0)))
    items = make_items(60)

    def merge(params: Any) -> Any:
        return nnx.merge(graph, nnx.State(params))

    mesh = build_mesh(MeshConfig(), jax.devices()[:1])
    return merge, params, items, PackedScorer(merge, mesh, max_len=MOST).score(params, items)


def test_scores_are_the_models(scored: Any) -> None:
    merge, params, items, found = scored
    model = merge(params)
    for item, score in list(zip(items, found, strict=True))[::6]:
        tokens = np.array([[*item.inputs, *[0] * (MOST - len(item.inputs))]], np.int32)
        shares = np.asarray(jax.nn.log_softmax(model(tokens)[0]))
        places = np.arange(len(item.inputs) - len(item.targets), len(item.inputs))
        assert score.log_likelihood == pytest.approx(shares[places, item.targets].sum(), abs=1e-4)
        assert score.greedy == bool((shares[places].argmax(axis=1) == item.targets).all())


@pytest.mark.parametrize("size", [1, 7, 64])
def test_bits_do_not_depend_on_what_is_beside(size: int, scored: Any) -> None:
    """At any batch size, and in another order of the requests."""
    merge, params, items, found = scored
    scorer = PackedScorer(merge, build_mesh(MeshConfig(), jax.devices()[:1]), max_len=MOST, batch_size=size)
    order = np.random.default_rng(size).permutation(len(items))
    assert scorer.score(params, [items[number] for number in order]) == [found[number] for number in order]
    assert scorer.score(params, items[:9]) == found[:9]


MESHES = [{"data": 8}, {"data": 2, "tensor": 2, "context": 2}, {"data": 1, "fsdp": 4, "tensor": 2}]  # 8 devices each


@pytest.mark.parametrize("axes", rotated(MESHES, MESHES[1]))
def test_a_mesh_gives_the_same_scores(axes: dict[str, Any], scored: Any) -> None:
    _, params, items, found = scored
    mesh = build_mesh(MeshConfig(**axes))
    blueprint = make_blueprint(CONFIG, OptimConfig(), 1, mesh)
    placed = init_state(blueprint, 0, jax.tree.map(jax.numpy.copy, params))["params"]
    scores = PackedScorer(blueprint.merge, mesh, max_len=MOST).score(placed, items)
    # Sums of products over a split dim are added in another order: 1e-6 of the whole in float32 (seen: 8e-7). The
    # absolute 1e-5 is for a likely token, whose log-likelihood near 0 is the difference of two logits of up to 100.
    for one, other in zip(scores, found, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5, abs=1e-5)
        assert one.greedy == other.greedy


def test_slots() -> None:
    expected = {1: 16, 16: 16, 17: 32, 33: 48, 48: 48, 49: 64, 65: 96, 97: 100, 100: 100}
    assert {n: slot_length(n, 100) for n in expected} == expected
    assert [slot_length(n, 10**4) for n in (129, 193, 257, 385)] == [192, 256, 384, 512]
