"""The numbers of `jax.random`: the same bits, and normal ones up to the last, in which compilations differ."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import MESHES
from lmkit.config.entry import compose
from lmkit.nn import random
from lmkit.nn.random import bernoulli, normal
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of

LAST_BIT = {"rtol": 3e-7, "atol": 1e-7}


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4, 5), (1000, 33), (0, 4)], ids=str)
@pytest.mark.parametrize("seed", [0, 2**31 + 5])
def test_they_are_jax_s(shape: tuple[int, ...], seed: int) -> None:
    key = jax.random.fold_in(jax.random.key(seed), 3)
    np.testing.assert_allclose(jax.jit(partial(normal, shape=shape))(key), jax.random.normal(key, shape), **LAST_BIT)
    for share in (0.0, 0.1, 0.5, 1.0):
        found = jax.jit(partial(bernoulli, share=share, shape=shape))(key)
        np.testing.assert_array_equal(found, jax.random.bernoulli(key, share, shape))
    assert normal(key, shape).dtype == jnp.float32


def test_over_many_keys_and_on_a_mesh() -> None:
    keys = jax.random.split(jax.random.key(0), 8)
    expected = jax.vmap(lambda key: jax.random.normal(key, (16, 4)))(keys)
    made = jax.vmap(lambda key: normal(key, (16, 4)))
    np.testing.assert_allclose(made(keys), expected, **LAST_BIT)
    mesh = build_mesh(compose(["run.name=x", *MESHES["fsdp8"]]).mesh)
    born = jax.jit(made, out_shardings=sharding_of(("layers", "embed", "head"), mesh)).lower(keys).compile()
    np.testing.assert_allclose(born(keys), expected, **LAST_BIT)
    assert born.memory_analysis().temp_size_in_bytes < expected.nbytes  # no device makes the whole


def test_on_a_cpu_they_are_made_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    key = jax.random.key(0)
    text = jax.jit(partial(normal, shape=(64, 64))).lower(key).compile().as_text()
    assert " while(" not in text
    monkeypatch.setattr(random, "one_pass_random", lambda: False)
    text = jax.jit(lambda key: normal(key, (64, 64))).lower(key).compile().as_text()
    assert " while(" in text  # jax's way here


@pytest.mark.parametrize("kind", ["rbg", "raw"])
def test_keys_of_other_kinds_are_left_to_jax(kind: str) -> None:
    key = jax.random.PRNGKey(3) if kind == "raw" else jax.random.key(3, impl=kind)
    np.testing.assert_array_equal(normal(key, (4, 4)), jax.random.normal(key, (4, 4)))


def test_where_numbers_depend_on_the_size_they_are_left_to_jax() -> None:
    with jax.threefry_partitionable(False):
        key = jax.random.key(0)
        np.testing.assert_array_equal(normal(key, (5, 5)), jax.random.normal(key, (5, 5)))
