"""From images and sound to the vectors that a stack of blocks takes."""

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import EncDecConfig, ViTConfig
from lmkit.nn.check import shape_of
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

    def __call__(self, images_BHWC: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Floats [B, H, W, C] to [B, P, D] of `dtype`, row by row. Raises ConfigError for another size or dtype."""
        side, patch = self.config.image_size, self.config.patch_size
        shape, expected = shape_of("images_BHWC", images_BHWC), (side, side, self.config.num_channels)
        if len(shape) != 4 or shape[1:] != expected:
            found = f"images of shape {shape[1:]}" if len(shape) == 4 else f"an array of shape {shape} for [B, H, W, C]"
            raise ConfigError(
                f"{found}, the model takes {expected}: resize them, or set model.image_size and model.num_channels"
            )
        if not jnp.issubdtype(images_BHWC.dtype, jnp.floating):
            raise ConfigError(
                f"images are {images_BHWC.dtype}: give floats, normalised as the model expects, such as "
                f"images / 127.5 - 1"
            )
        images_BHWC = images_BHWC.astype(dtype)
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
        self.num_mels = config.num_mels
        self.first = Linear({"feature": _TAPS * config.num_mels}, width, **inner)
        self.second = Linear({"feature": _TAPS * config.embed_dim}, width, **inner)

    def __call__(self, frames_BFM: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Log-mel frames [B, F, M] to [B, ceil(F / 2), D] of `dtype`. Raises ConfigError for another shape or dtype."""
        shape = shape_of("source", frames_BFM)
        if len(shape) != 3 or not shape[1] or shape[2] != self.num_mels:
            raise ConfigError(
                f"source has shape {shape}: the model takes log-mel frames [B, F, {self.num_mels}]: make them with "
                f"lmkit.data.sources.audio.log_mel, or set model.num_mels"
            )
        if not jnp.issubdtype(frames_BFM.dtype, jnp.floating):
            raise ConfigError(f"source is {frames_BFM.dtype}: the model takes log-mel frames, which are floats")
        frames_BFM = frames_BFM.astype(dtype)
        x_BFD = jax.nn.gelu(self.first(_taps(frames_BFM, 1), out=WHOLE), approximate=False)
        return jax.nn.gelu(self.second(_taps(x_BFD, 2), out=WHOLE), approximate=False)


def _taps(x_BFC: jax.Array, stride: int) -> jax.Array:
    """Each frame with its two neighbours, zeros outside: [B, F, C] to [B, F / stride, 3 C]."""
    frames = x_BFC.shape[1]
    padded = jnp.pad(x_BFC, ((0, 0), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, tap : tap + frames : stride] for tap in range(_TAPS)], axis=-1)
