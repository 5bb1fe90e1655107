"""Encoder-decoders: the decoder sees no future and all of the source, and only its own."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.families import KINDS

from lmkit.models import EncDec

NAMES = ["transformer", "t5", "whisper"]
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 256, (2, 12)))


def built(name: str):
    config = KINDS[name].config
    model = EncDec(config, rngs=nnx.Rngs(0))
    source = RNG.normal(size=(2, 40, 20)).astype(np.float32) if name == "whisper" else RNG.integers(0, 256, (2, 20))
    return model, jnp.asarray(source)


@pytest.mark.parametrize("name", NAMES)
def test_no_future_and_all_of_the_source(name: str) -> None:
    model, source = built(name)
    base = model(source, TOKENS)
    later = model(source, TOKENS.at[:, 7].add(1))
    np.testing.assert_array_equal(base[:, :7], later[:, :7])
    assert (jnp.abs(base - later)[:, 7:].max(-1) > 0).all()
    for place in (0, source.shape[1] - 1):
        assert (jnp.abs(model(source.at[:, place].add(1), TOKENS) - base).max(-1) > 0).all()


@pytest.mark.parametrize("name", ["transformer", "t5"])
def test_padding_of_the_source_changes_nothing(name: str) -> None:
    model, source = built(name)
    real = (jnp.arange(20) < 13).astype(jnp.int32)[None].repeat(2, 0)
    np.testing.assert_allclose(model(source, TOKENS, real), model(source[:, :13], TOKENS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["transformer", "t5"])
def test_packed_pairs_see_their_own_source(name: str) -> None:
    """Two translations in one row equal each alone: their places count from each one's own beginning."""
    model, source = built(name)
    pairs = jnp.array([[1] * 8 + [2] * 12] * 2), jnp.array([[1] * 5 + [2] * 7] * 2)
    packed = model(source, TOKENS, *pairs)
    np.testing.assert_allclose(packed[:, :5], model(source[:, :8], TOKENS[:, :5]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(packed[:, 5:], model(source[:, 8:], TOKENS[:, 5:]), rtol=1e-4, atol=1e-5)


def test_encoding_once_serves_every_decoding() -> None:
    model, source = built("transformer")
    memory = model.encode(source)
    np.testing.assert_allclose(model.decode(memory, TOKENS), model.hidden(source, TOKENS), rtol=1e-6)


def test_frames_are_halved() -> None:
    model, _ = built("whisper")
    assert model.encode(jnp.zeros((1, 31, 20))).hidden_BSD.shape == (1, 16, 64)


def test_dropout_needs_a_key() -> None:
    import dataclasses

    import jax

    model = EncDec(dataclasses.replace(KINDS["transformer"].config, dropout=0.5), rngs=nnx.Rngs(0))
    source = jnp.asarray(RNG.integers(0, 256, (2, 20)))
    one, other = (model.hidden(source, TOKENS, key=jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(model.hidden(source, TOKENS), model.hidden(source, TOKENS))
    assert not np.allclose(one, other)


def test_too_long_for_the_table_of_positions() -> None:
    import dataclasses

    from lmkit.config.sections.model import Position

    config = dataclasses.replace(KINDS["transformer"].config, position=Position.learned, max_seq_len=16)
    model = EncDec(config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="a sequence of 20 is longer than the model's 16 positions"):
        model(jnp.ones((1, 20), jnp.int32), TOKENS[:1])
