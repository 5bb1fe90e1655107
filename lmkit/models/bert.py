"""Encoders: BERT, RoBERTa, MiniLM, ModernBERT, by configuration alone."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lmkit.config.sections.families import BERTConfig
from lmkit.config.sections.model import NormOrder, TransformerConfig
from lmkit.config.sections.optim import ParamKind
from lmkit.nn.attention import make_layer_inputs, windowed_layers
from lmkit.nn.block import load_block
from lmkit.nn.check import check_stream, check_tokens, present
from lmkit.nn.dropout import dropout
from lmkit.nn.embed import Embed, StreamInput, default_positions, vocabulary_logits
from lmkit.nn.linear import Linear
from lmkit.nn.mlp import ACTIVATIONS
from lmkit.nn.norm import stream_norm
from lmkit.nn.param import compute_dtype, param
from lmkit.nn.stack import Stack
from lmkit.parallel.rules import WHOLE, gathered_dims, reshard, residual_dims


class BERT(nnx.Module):
    """Embeddings, a stack of two-sided blocks, and the heads that the configuration asks for.

    model = BERT(BERTConfig(vocab_size=256, num_layers=2, num_heads=4, embed_dim=64), rngs=nnx.Rngs(0))
    logits_BTV = model(tokens_BT)

    With norm_order=pre (ModernBERT) the first block has no norm before attention: the embeddings are normed already.
    """

    HEADS: ClassVar = ("pooler", "lm_head", "next_sentence", "classifier")  # fine-tuning may start them afresh

    def __init__(self, config: BERTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embed(config.vocab_size, config.embed_dim, dim="vocab", std=config.init_std, rngs=rngs)
        self.input = StreamInput(
            config, length=config.max_seq_len, offset=config.position_offset, types=config.type_vocab_size,
            normed=True, rngs=rngs,
        )  # fmt: skip
        make_block, pre = load_block(config), config.norm_order is not NormOrder.post
        make_first = partial(make_block, config, causal=False, normed=False)
        self.first = Stack(lambda rngs: make_first(rngs=rngs), config, num_layers=1, rngs=rngs) if pre else None
        rest = config.num_layers - int(pre)
        self.stack = Stack(lambda rngs: make_block(config, causal=False, rngs=rngs), config, num_layers=rest, rngs=rngs)
        self.norm = stream_norm(config) if pre else None
        width = {"embed": config.embed_dim}
        inner = {"std": config.init_std, "bias": True, "rngs": rngs}
        self.pooler = Linear(width, {"feature": config.embed_dim}, **inner) if config.pooler else None
        self.lm_head = MaskedHead(config, rngs=rngs) if config.lm_head else None
        self.next_sentence = Linear(width, {"feature": 2}, **inner) if config.next_sentence_head else None
        classes = {"feature": config.num_classes}
        self.classifier = Linear(width, classes, **inner) if config.num_classes else None

    def encode(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        types_BT: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """int tokens [B, T] to the last block's output [B, T, D] in the compute dtype.

        Args:
            segment_ids_BT: int; tokens attend within their own: packed documents, and padding as one of its own.
            positions_BT: int; None for 0..T-1.
            types_BT: int kind of each token (sentence A or B); None for 0.
            key: switches dropout on.

        Raises ConfigError for another shape or dtype.
        """
        check_tokens(tokens_BT, key, segment_ids_BT=segment_ids_BT, positions_BT=positions_BT, types_BT=types_BT)
        config = self.config
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        x_BTD = self.embed(tokens_BT, compute_dtype(config.dtype), out=residual_dims(tokens_BT.shape[1]))
        x_BTD = self.input(x_BTD, positions_BT, types_BT, keys[0])
        inputs = make_layer_inputs(config, default_positions(tokens_BT, positions_BT), segment_ids_BT)
        if self.first is not None:
            x_BTD = self.first(x_BTD, inputs, flags=config.window_of(0) > 0, key=keys[1])
        x_BTD = self.stack(x_BTD, inputs, flags=windowed_layers(config, int(self.first is not None)), key=keys[2])
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def pool(self, hidden_BTD: jax.Array) -> jax.Array:
        """What stands for the whole row, [B, D]: a dense layer with tanh on its first token."""
        pooler = present(self.pooler, "pooler", "model.pooler=true")
        check_stream(hidden_BTD, self.config.embed_dim)
        first_B1D = reshard(hidden_BTD, WHOLE)[:, :1]
        return jnp.tanh(pooler(first_B1D, out=WHOLE))[:, 0]

    def next_sentence_logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """float32 [B, 2]: does the second sentence follow the first (0), or not (1)?"""
        head = present(self.next_sentence, "next-sentence head", "model.next_sentence_head=true")
        return head(self.pool(hidden_BTD)[:, None], out=WHOLE)[:, 0].astype(jnp.float32)

    def class_logits(self, hidden_BTD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """What `encode` gave to float32 [B, classes], or [B, T, classes] with classify_tokens. key: dropout on."""
        classifier = present(self.classifier, "classes", "model.num_classes=N")
        check_stream(hidden_BTD, self.config.embed_dim)
        config = self.config
        dims = gathered_dims(hidden_BTD.shape[1]) if config.classify_tokens else WHOLE
        x_BTD = reshard(hidden_BTD, dims) if config.classify_tokens else self.pool(hidden_BTD)[:, None]
        logits = classifier(dropout(x_BTD, config.dropout, key, dims), out=dims).astype(jnp.float32)
        return logits if config.classify_tokens else logits[:, 0]

    def hidden(
        self, tokens_BT: jax.Array, segment_ids_BT=None, positions_BT=None, key=None, types_BT=None
    ) -> jax.Array:
        """What the masked-LM logits are made of, [B, T, D]; arguments as in `encode`."""
        head = present(self.lm_head, "masked-LM head", "model.lm_head=true")
        return head(self.encode(tokens_BT, segment_ids_BT, positions_BT, types_BT, key))

    def head_VD(self) -> jax.Array:
        """The table that turns `hidden` into logits: float32 [V, D]."""
        return self.embed.table[...]

    def head_bias_V(self) -> jax.Array:
        """The bias of those logits: float32 [V]."""
        return present(self.lm_head, "masked-LM head", "model.lm_head=true").bias[...]

    def __call__(
        self, tokens_BT: jax.Array, segment_ids_BT=None, positions_BT=None, types_BT=None, key=None
    ) -> jax.Array:
        """int tokens [B, T] to float32 masked-LM logits [B, T, V]; arguments as in `encode`."""
        hidden_BTD = self.hidden(tokens_BT, segment_ids_BT, positions_BT, key, types_BT)
        return vocabulary_logits(hidden_BTD, self.head_VD(), self.head_bias_V())


class MaskedHead(nnx.Module):
    """norm(activation(dense(x))), which the embedding table and a bias turn into logits (Devlin et al. 2019)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.activation, width = config.activation, {"embed": config.embed_dim}
        self.dense = Linear(width, {"feature": config.embed_dim}, std=config.init_std, bias=config.bias, rngs=rngs)
        self.norm = stream_norm(config)
        self.bias = param(jnp.zeros(config.vocab_size), ("vocab",), ParamKind.vector)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        y_BTD = self.dense(reshard(x_BTD, gathered_dims(x_BTD.shape[1])), out=residual_dims(x_BTD.shape[1]))
        return self.norm(ACTIVATIONS[self.activation](y_BTD))
