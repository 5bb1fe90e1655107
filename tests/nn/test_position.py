"""Positions: scaled rotary frequencies, fixed sines, buckets of distance."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import tiny_config
from lmkit.config.sections.families import EncDecConfig
from lmkit.config.sections.model import Position, RopeScaling
from lmkit.nn.position import RelativeBias, apply_rope, grid_sinusoids, rope_table, scaled_frequencies, sinusoids


def test_rope_turns_by_position_times_frequency() -> None:
    """Of four numbers (0, 2) and (1, 3) are pairs, with frequencies 1 and 1 / sqrt(theta); turned from the first on."""
    config, (a, b, c, d) = tiny_config(head_dim=4, rope_theta=100.0), (1.0, 2.0, 3.0, 4.0)
    got = apply_rope(jnp.array([[[[a, b, c, d]]]]), rope_table(jnp.array([[3]]), config))[0, 0, 0]
    fast, slow = 3.0, 0.3
    expected = [
        a * math.cos(fast) - c * math.sin(fast), b * math.cos(slow) - d * math.sin(slow),
        a * math.sin(fast) + c * math.cos(fast), b * math.sin(slow) + d * math.cos(slow),
    ]  # fmt: skip
    np.testing.assert_allclose(got, expected, atol=1e-5)  # float32


def test_linear_scaling_slows_every_frequency() -> None:
    plain, slow = tiny_config(), tiny_config(rope_scaling=RopeScaling.linear, rope_factor=4.0)
    for a, b in zip(rope_table(jnp.array([[8]]), slow), rope_table(jnp.array([[2]]), plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_llama3_scaling_keeps_short_and_stretches_long_waves() -> None:
    config = tiny_config(rope_scaling=RopeScaling.llama3, rope_factor=8.0, rope_original_len=1000)
    wavelength = jnp.array([10.0, 249.0, 500.0, 1001.0, 1e5])
    got = scaled_frequencies(2 * math.pi / wavelength, config) * wavelength / (2 * math.pi)
    smooth = (1000 / 500 - 1) / (4 - 1)  # between 250 and 1000 a mixture
    np.testing.assert_allclose(got, [1, 1, smooth + (1 - smooth) / 8, 1 / 8, 1 / 8], rtol=1e-5)


def test_windowed_layers_have_their_own_wavelength_and_no_scaling() -> None:
    config = tiny_config(rope_local_theta=100.0, rope_scaling=RopeScaling.linear, rope_factor=4.0)
    local, plain = rope_table(jnp.arange(9)[None], config, local=True), tiny_config(rope_theta=100.0)
    np.testing.assert_allclose(local[0], rope_table(jnp.arange(9)[None], plain)[0], atol=1e-6)


@pytest.mark.parametrize("closed", [False, True])
def test_sinusoids_equal_the_formula(closed: bool) -> None:
    got = sinusoids(jnp.arange(50), 12, closed=closed)
    for column in range(6):
        rate = 10_000.0 ** (-column / (5 if closed else 6))
        np.testing.assert_allclose(got[:, column], np.sin(np.arange(50) * rate), atol=1e-5)
        np.testing.assert_allclose(got[:, 6 + column], np.cos(np.arange(50) * rate), atol=1e-5)


def test_grid_sinusoids_tell_rows_from_columns() -> None:
    grid = grid_sinusoids(4, 16).reshape(4, 4, 16)
    np.testing.assert_array_equal(grid[3, :, 8:], jnp.broadcast_to(grid[3, 0, 8:], (4, 8)))  # y alone
    np.testing.assert_array_equal(grid[:, 2, :8], jnp.broadcast_to(grid[0, 2, :8], (4, 8)))  # x alone
    assert len(np.unique(np.round(grid.reshape(16, 16), 5), axis=0)) == 16


@pytest.mark.parametrize("causal", [True, False])
def test_buckets(causal: bool) -> None:
    """Exact near, logarithmic far, one for all beyond; the future has buckets of its own, or none with causality."""
    config = EncDecConfig(vocab_size=9, num_heads=4, embed_dim=32, position=Position.relative)
    bias = RelativeBias(config, causal=causal, rngs=nnx.Rngs(0))
    table = bias.table[...]
    out = bias(400, 400)
    assert out.shape == (4, 400, 400)
    exact = 16 if causal else 8
    for distance in range(exact):
        np.testing.assert_array_equal(out[:, 300, 300 - distance], table[distance])
    last = 31 if causal else 15
    np.testing.assert_array_equal(out[:, 399, 0], table[last])
    np.testing.assert_array_equal(out[:, 399, 399 - 128], table[last])
    future = table[0] if causal else table[16 + 3]
    np.testing.assert_array_equal(out[:, 100, 103], future)
