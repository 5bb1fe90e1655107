"""BERT: both sides are seen, padding and packed rows are not, heads that are off say so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.families import KINDS, batch_of

from helpers import params_of
from lmkit.config import ConfigError
from lmkit.config.sections.families import BERTConfig
from lmkit.config.sections.model import Position
from lmkit.config.sections.objective import ObjectiveConfig, ObjectiveKind
from lmkit.models import BERT
from lmkit.objectives import build_objective

KIND = {"bert": KINDS["bert"].config, "modernbert": KINDS["modernbert"].config}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 24)))


def model_of(name: str, **changes) -> BERT:
    config = KIND[name]
    assert isinstance(config, BERTConfig)
    return BERT(dataclasses.replace(config, **changes), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", KIND)
def test_every_position_sees_both_sides(name: str) -> None:
    model = model_of(name)
    base = model.encode(TOKENS)
    for place in (0, 23):
        other = model.encode(TOKENS.at[:, place].add(1))
        assert (jnp.abs(other - base).max(axis=(0, 2)) > 1e-6).all(), "the global layers reach everything"


@pytest.mark.parametrize("name", KIND)
def test_a_window_is_on_both_sides(name: str) -> None:
    """Two windowed layers of 8: 4 a side each."""
    model = model_of(name, sliding_window=8, global_every=0, num_layers=2, position=Position.rope)
    base = model.encode(TOKENS)
    other = model.encode(TOKENS.at[:, 12].add(1))
    moved = jnp.abs(other - base).max(axis=(0, 2)) > 0
    assert moved[12 - 8 : 12 + 9].all()
    assert not moved[: 12 - 8].any()
    assert not moved[12 + 9 :].any()


@pytest.mark.parametrize("name", KIND)
def test_padding_changes_nothing(name: str) -> None:
    model = model_of(name)
    segments = (jnp.arange(24) < 15).astype(jnp.int32)[None].repeat(2, 0)
    padded = model(TOKENS, segments)[:, :15]
    np.testing.assert_allclose(padded, model(TOKENS[:, :15]), rtol=1e-4, atol=1e-5)
    assert not np.allclose(model(TOKENS)[:, :15], padded, atol=1e-3)


def test_kinds_and_places_are_told_apart() -> None:
    model = model_of("bert")
    same = jnp.full((1, 6), 3)
    types = jnp.array([[0, 0, 0, 1, 1, 1]])
    assert not np.allclose(model.encode(same, types_BT=types)[0, 0], model.encode(same)[0, 0], atol=1e-4)
    assert not np.allclose(model.encode(same)[0, 1], model.encode(same)[0, 4], atol=1e-4)
    moved = BERT(BERTConfig(vocab_size=9, num_layers=1, num_heads=1, embed_dim=8, position_offset=2), rngs=nnx.Rngs(0))
    assert moved.input.position.table.shape == (514, 8)


def test_next_sentence_adds_its_mean() -> None:
    """Loss of the sum / weight = mean over masked tokens + mean over rows."""
    config = KIND["bert"]
    graph, params = params_of(BERT(config, rngs=nnx.Rngs(0)))
    model = nnx.merge(graph, nnx.State(params))
    objective, batch = build_objective(ObjectiveConfig(kind=ObjectiveKind.masked_lm)), batch_of(config)
    both, _ = objective(model, batch, None)
    alone, _ = objective(model, {k: v for k, v in batch.items() if k != "next_sentence"}, None)
    logits = model.next_sentence_logits(model.encode(batch["inputs"], batch["segment_ids"], None, batch["types"]))
    rows = -jax.nn.log_softmax(logits)[jnp.arange(8), batch["next_sentence"]].mean()
    assert float(both.loss / both.weight) == pytest.approx(float(alone.loss / alone.weight + rows), rel=1e-5)
    assert float(both.nll) == float(alone.nll)


def test_heads_that_are_off_say_so() -> None:
    with pytest.raises(ConfigError, match="pooler=false"):
        BERTConfig(vocab_size=9, pooler=False, next_sentence_head=True)
    with pytest.raises(ConfigError, match="only encoder-decoders"):
        BERTConfig(vocab_size=9, position=Position.relative)
    with pytest.raises(ConfigError, match="lm_head=true"):
        model_of("bert", lm_head=False)(TOKENS)
