"""A cache that is read where it is: the numbers of the plain products, in every number of slots; nothing is copied."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import params_of
from lmkit.compiler.programs import FewRows, tracing
from lmkit.config.sections.families import GPTConfig
from lmkit.decode import Decoder, Prompts, Sampling
from lmkit.models import build_model
from lmkit.nn import forms
from lmkit.nn.slots import Slots

LAYERS, ROWS, HEADS = 3, 2, 3


@pytest.mark.parametrize("slots", [1, 5, 8, 20, 77, 300])  # none, some and many terms of each sum
@pytest.mark.parametrize("group", [1, 4])
def test_the_plain_numbers(slots: int, group: int) -> None:
    keys = jax.random.split(jax.random.key(slots), 3)
    cache = jax.random.normal(keys[0], (LAYERS, ROWS + 1, slots, HEADS, 32))  # one row more than is asked for
    q = jax.random.normal(keys[1], (ROWS, 1, HEADS, group, 32))
    weights = jax.nn.softmax(jax.random.normal(keys[2], (ROWS, HEADS, group, 1, slots)))

    @jax.jit
    def both(cache, layer):
        one = Slots(cache, layer, ROWS)
        return forms.cached_scores(q, one), forms.cached_values(weights, one)

    for layer in range(LAYERS):
        plain = cache[layer, :ROWS]
        expected = forms.cached_scores(q, plain), forms.cached_values(weights, plain)
        for found, wanted in zip(both(cache, jnp.int32(layer)), expected, strict=True):
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_where_it_is_read_in_place() -> None:
    """One new token of each row, float32, heads that the loop can cut, and programs that may round as they like."""
    cache = jnp.zeros((1, 1, 8, 1, 32))
    with tracing(False, FewRows.fast):
        assert forms.in_place(cache, 1)
        assert not forms.in_place(cache, 2)
        assert not forms.in_place(cache.astype(jnp.bfloat16), 1)
        assert not forms.in_place(cache[..., :8], 1)
    for few in (FewRows.plain, FewRows.alike):
        with tracing(False, few):
            assert not forms.in_place(cache, 1)


def test_a_step_writes_no_key_anew() -> None:
    """No operation of the compiled step but the one that adds the new keys has the size of a layer's cache."""
    config = GPTConfig(vocab_size=96, num_layers=3, num_heads=4, num_kv_heads=2, embed_dim=64)
    graph, params = params_of(build_model(config, nnx.Rngs(0)))
    decoder = Decoder(lambda params: nnx.merge(graph, nnx.State(params)), config, Sampling())
    params, key = decoder.prepared(params), jax.random.key(0)
    _, state = decoder._prefill(params, decoder.put(Prompts([[5, 9]] * 3), 37), key, length=53)
    text = decoder._step.lower(params, state, key).compile().as_text()
    copies = re.findall(r"= f32\[([\d,]+)\]\S* (?:fusion|copy|transpose)\(", text)
    layer = 3 * 53 * 2 * 16
    assert not [shape for shape in copies if np.prod([int(one) for one in shape.split(",")]) == layer]
