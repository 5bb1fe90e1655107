"""ViT and CLIP: patches in reading order, both poolings, fixed places, unit vectors, images of another size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.families import KINDS, batch_of

from lmkit.config import ConfigError
from lmkit.config.sections.families import Pooling, ViTConfig
from lmkit.config.sections.model import Position
from lmkit.config.sections.objective import ObjectiveConfig, ObjectiveKind
from lmkit.models import CLIP, ViT
from lmkit.nn.frontend import Patches
from lmkit.objectives import build_objective

CONFIG = KINDS["vit"].config
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 24, 3)), jnp.float32)


def test_patches_are_cut_row_by_row() -> None:
    assert isinstance(CONFIG, ViTConfig)
    patches = Patches(CONFIG, rngs=nnx.Rngs(0))
    got = patches(IMAGES, jnp.dtype(jnp.float32))
    for number in range(9):
        y, x = 8 * (number // 3), 8 * (number % 3)
        cut = IMAGES[:, y : y + 8, x : x + 8].reshape(2, -1)
        np.testing.assert_allclose(got[:, number], cut @ patches.project.kernel[...], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", [Position.learned, Position.sinusoidal])
@pytest.mark.parametrize("pooling", list(Pooling))
def test_poolings_and_positions(pooling: Pooling, position: Position) -> None:
    """What is pooled is the class token or the mean of the patches; shuffled patches are noticed."""
    model = ViT(dataclasses.replace(CONFIG, pooling=pooling, position=position), rngs=nnx.Rngs(0))
    hidden = model.hidden(IMAGES)
    assert hidden.shape == (2, 9 + (pooling is Pooling.first), 64)
    pooled = hidden[:, 0] if pooling is Pooling.first else hidden.mean(axis=1)
    np.testing.assert_allclose(model(IMAGES), pooled @ model.head.kernel[...] + model.head.bias[...], rtol=1e-5)
    swapped = jnp.concatenate([IMAGES[:, 8:16], IMAGES[:, :8], IMAGES[:, 16:]], axis=1)
    assert not np.allclose(model(swapped), model(IMAGES), atol=1e-5)


def test_without_positions_the_mean_sees_a_bag_of_patches() -> None:
    model = ViT(dataclasses.replace(CONFIG, pooling=Pooling.mean, position=Position.none), rngs=nnx.Rngs(0))
    swapped = jnp.concatenate([IMAGES[:, 8:16], IMAGES[:, :8], IMAGES[:, 16:]], axis=1)
    np.testing.assert_allclose(model(swapped), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_images_of_another_size_are_named() -> None:
    model = ViT(CONFIG, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(32, 24, 3\), the model takes \(24, 24, 3\)"):
        model(jnp.zeros((1, 32, 24, 3)))
    with pytest.raises(ConfigError, match=r"image_size=30.*patch_size=16.*16 and 32"):
        ViTConfig(image_size=30)


def test_clip_compares_unit_vectors() -> None:
    config = KINDS["clip"].config
    model, batch = CLIP(config, rngs=nnx.Rngs(0)), batch_of(config)
    text, image = model.embed_text(batch["inputs"], batch["last"]), model.embed_image(batch["images"])
    np.testing.assert_allclose(jnp.linalg.norm(text, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(image, axis=1), 1, rtol=1e-5)
    scale = float(jnp.exp(model.logit_scale[...]))
    assert scale == pytest.approx(1 / 0.07, rel=1e-3)
    got = model(batch["inputs"], batch["last"], batch["images"])
    np.testing.assert_allclose(got, scale * text @ image.T, rtol=1e-4, atol=1e-4)
    after = batch["inputs"].copy()
    after[0, batch["last"][0] + 1 :] += 1  # what comes after the end token is not read
    np.testing.assert_allclose(model.embed_text(after % 256, batch["last"]), text, atol=1e-6)


def test_contrastive_loss_is_the_mean_of_both_directions() -> None:
    config = KINDS["clip"].config
    model, batch = CLIP(config, rngs=nnx.Rngs(0)), batch_of(config)
    sums, _ = build_objective(ObjectiveConfig(kind=ObjectiveKind.contrastive))(model, batch, None)
    logits, own = model(batch["inputs"], batch["last"], batch["images"]), jnp.arange(8)
    both = [-jax.nn.log_softmax(x)[own, own].mean() for x in (logits, logits.T)]
    assert float(sums.loss / sums.weight) == pytest.approx(float(sum(both)) / 2, rel=1e-5)


def test_classification_weighs_and_smooths() -> None:
    model, batch = ViT(CONFIG, rngs=nnx.Rngs(0)), batch_of(CONFIG)
    sums, _ = build_objective(ObjectiveConfig(kind=ObjectiveKind.classify, label_smoothing=0.2))(model, batch, None)
    log = jax.nn.log_softmax(model(batch["images"]))
    target = 0.8 * jax.nn.one_hot(batch["labels"], 8) + 0.2 / 8
    assert float(sums.loss) == pytest.approx(float(-(target * log).sum(-1) @ batch["weights"]), rel=1e-5)
    assert float(sums.weight) == batch["weights"].sum()
    right = (log.argmax(-1) == batch["labels"]) @ batch["weights"]
    assert float(sums.correct) == float(right)
