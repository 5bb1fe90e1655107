"""From images and sound to the vectors that a stack of blocks takes."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.sections.families import EncDecConfig, ViTConfig
from lmkit.nn.linear import Linear
from lmkit.parallel.rules import WHOLE, current_spec

_TAPS = 3


class Patches(nnx.Module):
    """Square patches of an image, each a vector through one linear layer (Dosovitskiy et al. 2021, equation 1)."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        pixels = config.patch_size**2 * config.num_channels
        self.project = Linear(
            {"feature": pixels}, {"embed": config.embed_dim}, std=config.init_std, bias=config.patch_bias, rngs=rngs
        )

    def __call__(self, images_BHWC: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, P, D], row by row. Raises ValueError for another size than the model's."""
        side, patch = self.config.image_size, self.config.patch_size
        if images_BHWC.shape[1:] != (side, side, self.config.num_channels):
            raise ValueError(
                f"images of shape {images_BHWC.shape[1:]}, the model takes {(side, side, self.config.num_channels)}: "
                f"resize them, or set model.image_size and model.num_channels"
            )
        rows = side // patch
        batch, channels, whole = images_BHWC.shape[0], self.config.num_channels, (None,) * 5
        sizes = (batch, rows, patch, rows, patch, channels)
        x = jax.lax.reshape(images_BHWC, sizes, out_sharding=current_spec(("batch", *whole)))
        sizes = (batch, rows * rows, patch * patch * channels)
        x_BPf = jax.lax.reshape(x.transpose(0, 1, 3, 2, 4, 5), sizes, out_sharding=current_spec(WHOLE))
        return self.project(x_BPf, out=WHOLE)


class AudioFrontend(nnx.Module):
    """Two convolutions over time with GELU, the second at every other frame (Radford et al. 2022, section 2.2)."""

    def __init__(self, config: EncDecConfig, *, rngs: nnx.Rngs):
        width, inner = {"embed": config.embed_dim}, {"std": config.init_std, "bias": True, "rngs": rngs}
        self.first = Linear({"feature": _TAPS * config.num_mels}, width, **inner)
        self.second = Linear({"feature": _TAPS * config.embed_dim}, width, **inner)

    def __call__(self, frames_BFM: jax.Array) -> jax.Array:
        """Log-mel frames [B, F, M] to [B, ceil(F / 2), D]."""
        x_BFD = jax.nn.gelu(self.first(_taps(frames_BFM, 1), out=WHOLE), approximate=False)
        return jax.nn.gelu(self.second(_taps(x_BFD, 2), out=WHOLE), approximate=False)


def _taps(x_BFC: jax.Array, stride: int) -> jax.Array:
    """Each frame with its two neighbours, zeros outside: [B, F, C] to [B, F / stride, 3 C]."""
    frames = x_BFC.shape[1]
    padded = jnp.pad(x_BFC, ((0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, tap : tap + frames : stride] for tap in range(_TAPS)], axis=-1)
