"""A snapshot outlives the state that it is of, and needs memory only once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmkit.checkpoint.snapshot import Snapshot


@pytest.fixture
def state():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    split, whole = NamedSharding(mesh, PartitionSpec("data", "tensor")), NamedSharding(mesh, PartitionSpec())
    kernel = jax.device_put(jnp.arange(64.0).reshape(8, 8), split)
    return {"params": {"kernel": kernel}, "step": jax.device_put(jnp.int32(3), whole)}


def values(tree):
    return jax.tree.map(lambda one: np.array(one, copy=True), tree)


@jax.jit
def _more(state):
    return jax.tree.map(lambda one: one + 1, state)


def test_a_snapshot_is_what_the_state_was_when_steps_took_it(state):
    step, before = jax.jit(_more, donate_argnums=0), values(state)
    snapshot = Snapshot()
    for number in range(3):
        kept = snapshot.of(state)
        assert jax.tree.map(lambda one: one.sharding, kept) == jax.tree.map(lambda one: one.sharding, state)
        state = step(state)
        jax.tree.map(lambda one, first, n=number: np.testing.assert_array_equal(one, first + n), values(kept), before)
    jax.tree.map(lambda one, first: np.testing.assert_array_equal(one, first + 3), values(state), before)


def test_memory_is_asked_for_once(state):
    snapshot, places = Snapshot(), []
    for _ in range(3):
        kept = snapshot.of(state)
        places.append([shard.data.unsafe_buffer_pointer() for shard in kept["params"]["kernel"].addressable_shards])
        own = [shard.data.unsafe_buffer_pointer() for shard in state["params"]["kernel"].addressable_shards]
        assert not set(own) & set(places[-1])
        state = _more(state)
    assert places[0] == places[1] == places[2]
