"""Vision transformers, and CLIP's two towers."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.sections.families import CLIPConfig, Pooling, ViTConfig
from lmkit.config.sections.model import Position
from lmkit.config.sections.optim import ParamKind
from lmkit.models.gpt import GPT
from lmkit.nn.attention import make_layer_inputs, windowed_layers
from lmkit.nn.block import load_block
from lmkit.nn.check import check_key, check_shape, check_stream, check_tokens, present
from lmkit.nn.embed import StreamInput, default_positions
from lmkit.nn.forms import exact_einsum
from lmkit.nn.frontend import Patches
from lmkit.nn.linear import Linear
from lmkit.nn.norm import stream_norm
from lmkit.nn.param import compute_dtype, param
from lmkit.nn.position import grid_sinusoids
from lmkit.nn.random import normal
from lmkit.nn.stack import Stack
from lmkit.parallel.rules import WHOLE, current_spec, reshard, residual_dims


class ViT(nnx.Module):
    """Patches, a class token or none, positions, a stack of two-sided blocks, a norm, a linear head.

    model = ViT(ViTConfig(image_size=32, patch_size=8, num_layers=2, num_heads=4, embed_dim=64), rngs=nnx.Rngs(0))
    logits_BC = model(images_BHWC)
    """

    HEADS: ClassVar = ("head",)  # fine-tuning may start it afresh

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patches = Patches(config, rngs=rngs)
        with_class = config.pooling is Pooling.first
        token = config.init_std * normal(rngs.params(), (config.embed_dim,))
        self.class_token = param(token, ("norm",), ParamKind.vector) if with_class else None
        length = config.num_positions if config.position is Position.learned else 0
        self.input = StreamInput(config, length=length, normed=config.embed_norm, rngs=rngs)
        make_block = load_block(config)
        self.stack = Stack(lambda rngs: make_block(config, causal=False, rngs=rngs), config, rngs=rngs)
        self.norm = stream_norm(config)
        ends = {"embed": config.embed_dim}, {"feature": config.num_classes}
        self.head = Linear(*ends, std=config.init_std, bias=True, rngs=rngs) if config.num_classes else None

    def hidden(self, images_BHWC: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images [B, H, W, C], floats normalised as the model expects, to [B, P (+ 1), D] after the last norm."""
        check_key(key)
        config = self.config
        keys = (None, None) if key is None else jax.random.split(key)
        x_BPD = self.patches(images_BHWC, compute_dtype(config.dtype))
        if config.position is Position.sinusoidal:
            x_BPD += grid_sinusoids(config.image_size // config.patch_size, config.embed_dim).astype(x_BPD.dtype)
        if self.class_token is not None:
            token_D = self.class_token[...].astype(x_BPD.dtype)
            shape, spec = (x_BPD.shape[0], 1, config.embed_dim), current_spec(WHOLE)
            x_BPD = jnp.concatenate([jnp.broadcast_to(token_D, shape, out_sharding=spec), x_BPD], axis=1)
        x_BPD = self.input(reshard(x_BPD, residual_dims(x_BPD.shape[1])), key=keys[0])
        inputs = make_layer_inputs(config, default_positions(x_BPD, None), None)
        return self.norm(self.stack(x_BPD, inputs, flags=windowed_layers(config), key=keys[1]))

    def pool(self, hidden_BPD: jax.Array) -> jax.Array:
        """What stands for the image, [B, D]: the class token, or the mean over the patches."""
        check_stream(hidden_BPD, self.config.embed_dim, "hidden_BPD")
        hidden_BPD = reshard(hidden_BPD, WHOLE)
        return jnp.mean(hidden_BPD, axis=1) if self.class_token is None else hidden_BPD[:, 0]

    def __call__(self, images_BHWC: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images [B, H, W, C] to float32 logits [B, classes]."""
        head = present(self.head, "classes", "model.num_classes=N")
        pooled_BD = self.pool(self.hidden(images_BHWC, key))
        return head(pooled_BD[:, None], out=WHOLE)[:, 0].astype(jnp.float32)


class CLIP(nnx.Module):
    """A text and an image tower that project to one space (Radford et al. 2021, figure 3).

    model = CLIP(CLIPConfig(...), rngs=nnx.Rngs(0))
    similarities_BB = model(tokens_BT, last_B, images_BHWC)
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.text, self.vision = GPT(config.text, rngs=rngs), ViT(config.vision, rngs=rngs)
        space = {"feature": config.projection_dim}
        text, vision = config.text, config.vision
        self.text_projection = Linear({"embed": text.embed_dim}, space, std=0, bias=False, rngs=rngs)
        self.vision_projection = Linear({"embed": vision.embed_dim}, space, std=0, bias=False, rngs=rngs)
        self.logit_scale = param(jnp.asarray(config.logit_scale_init, jnp.float32), (), ParamKind.vector)

    def embed_text(self, tokens_BT: jax.Array, last_B: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """int tokens [B, T], and the place of each row's end token, to unit vectors float32 [B, projection_dim]."""
        check_tokens(tokens_BT, key)
        check_shape("last_B", last_B, tokens_BT.shape[:1], "the rows of tokens_BT are", ints=True)
        hidden_BTD = reshard(self.text.hidden(tokens_BT, key=key), WHOLE)
        chosen_BT = jnp.arange(tokens_BT.shape[1]) == last_B[:, None]  # a product instead of a gather: it shards
        pooled_BD = jnp.sum(jnp.where(chosen_BT[..., None], hidden_BTD, jnp.zeros_like(hidden_BTD)), axis=1)
        return _unit(self.text_projection(pooled_BD[:, None], out=WHOLE)[:, 0])

    def embed_image(self, images_BHWC: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images [B, H, W, C] to unit vectors float32 [B, projection_dim]."""
        pooled_BD = self.vision.pool(self.vision.hidden(images_BHWC, key))
        return _unit(self.vision_projection(pooled_BD[:, None], out=WHOLE)[:, 0])

    def __call__(self, tokens_BT, last_B, images_BHWC, key: jax.Array | None = None) -> jax.Array:
        """float32 [B texts, B images]: scaled cosine similarities."""
        check_key(key)
        keys = (None, None) if key is None else jax.random.split(key)
        text_BP = self.embed_text(tokens_BT, last_B, keys[0])
        image_BP = reshard(self.embed_image(images_BHWC, keys[1]), (None, None))  # each text meets every image
        scale, spec = jnp.exp(self.logit_scale[...]), current_spec(("batch", None))
        return scale * exact_einsum("iP,jP->ij", text_BP, image_BP, spec=spec)


def _unit(x_BP: jax.Array) -> jax.Array:
    x_BP = x_BP.astype(jnp.float32)
    return x_BP * jax.lax.rsqrt(jnp.sum(jnp.square(x_BP), axis=-1, keepdims=True))
