"""One schema a family of models. Its defaults are the family's own; `conf/model/` holds the presets."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import ConfigError, key
from lmkit.config.sections.model import (
    Activation,
    ModelConfig,
    Norm,
    NormOrder,
    Position,
    ResidualInit,
    TransformerConfig,
    again,
)
from lmkit.config.sections.objective import ObjectiveKind


def _refuse_position(config: TransformerConfig, *refused: Position) -> None:
    if config.position in refused:
        raise ConfigError(
            f"model.position={config.position.name}: only encoder-decoders have it; set rope, learned or sinusoidal"
        )


def _even_for_sines(config: TransformerConfig) -> None:
    if config.position is Position.sinusoidal and config.embed_dim % 2:
        raise ConfigError(f"model.embed_dim={config.embed_dim} is odd: position=sinusoidal needs sines and cosines")


@dataclass
class GPTConfig(TransformerConfig):
    """Decoder-only models: GPT-2, GPT-3, Llama, Qwen, Gemma, SmolLM, Mixtral by configuration alone."""

    tie_embeddings: bool = key(False, "the head is the embedding table")
    embed_scale: bool = key(False, "multiply embeddings by sqrt(embed_dim) (Gemma)")
    logit_softcap: float = key(0.0, "cap * tanh(logits / cap); 0 = off (Gemma 2: 30)", at_least=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_order is NormOrder.post:
            raise ConfigError("model.norm_order=post: GPT ends in a norm of its own; set pre or both")
        _even_for_sines(self)
        _refuse_position(self, Position.relative)


@dataclass
class BERTConfig(TransformerConfig):
    """Encoders: BERT, RoBERTa, MiniLM, ModernBERT by configuration alone."""

    head_keys: ClassVar[tuple[str, ...]] = ("pooler", "lm_head", "next_sentence_head", "num_classes", "classify_tokens")

    max_seq_len: int = again("max_seq_len", 512)
    position: Position = again("position", Position.learned)
    norm: Norm = again("norm", Norm.layernorm)
    norm_order: NormOrder = again("norm_order", NormOrder.post)
    norm_eps: float = again("norm_eps", 1e-12)
    activation: Activation = again("activation", Activation.gelu)
    bias: bool = again("bias", True)
    residual_init: ResidualInit = again("residual_init", ResidualInit.plain)
    type_vocab_size: int = key(2, "kinds of segment (sentence A, sentence B); 0 = no such embedding", at_least=0)
    position_offset: int = key(0, "rows of the position table before the first token's (RoBERTa: 2)", at_least=0)
    pooler: bool = key(True, "a dense layer with tanh on the first token")
    lm_head: bool = key(True, "a masked-LM head: dense, activation, norm, the embedding table, a bias")
    next_sentence_head: bool = key(False, "a two-way head on the pooled token: does B follow A?")
    num_classes: int = key(0, "outputs of a head on the pooled token, for classes or a number; 0 = none", at_least=0)
    classify_tokens: bool = key(False, "that head is on every token instead")

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_position(self, Position.relative)
        if self.next_sentence_head and not self.pooler:
            raise ConfigError("model.next_sentence_head=true with model.pooler=false: it reads the pooled token")
        if self.num_classes and not self.pooler and not self.classify_tokens:
            raise ConfigError(
                f"model.num_classes={self.num_classes} with model.pooler=false: the head reads the pooled token; set "
                f"model.pooler=true, or model.classify_tokens=true for a head on every token"
            )
        if self.block and self.norm_order is not NormOrder.post:
            raise ConfigError(
                f"model.block={self.block} with model.norm_order={self.norm_order.name}: this family's first block "
                f"then has no norm, which only lmkit's leaves out; set norm_order=post"
            )

    def stacks(self) -> dict[str, int]:
        post = self.norm_order is NormOrder.post  # else the first block is a stack of its own
        return {"num_layers": self.num_layers} if post else {"num_layers - 1": self.num_layers - 1}


@dataclass
class EncDecConfig(TransformerConfig):
    """Encoder and decoder: the original Transformer, T5, BART, Whisper by configuration alone."""

    max_seq_len: int = again("max_seq_len", 512)
    position: Position = again("position", Position.sinusoidal)
    norm: Norm = again("norm", Norm.layernorm)
    norm_order: NormOrder = again("norm_order", NormOrder.post)
    activation: Activation = again("activation", Activation.relu)
    bias: bool = again("bias", True)
    residual_init: ResidualInit = again("residual_init", ResidualInit.plain)
    num_decoder_layers: int = key(0, "blocks of the decoder; 0 = num_layers", at_least=0)
    num_mels: int = key(0, "bands of a log-mel frame: an audio encoder with two convolutions; 0 = tokens", at_least=0)
    max_source_len: int = key(0, "longest source, after the convolutions; 0 = max_seq_len", at_least=0)
    position_offset: int = key(0, "rows of the position table before the first token's (BART: 2)", at_least=0)
    relative_buckets: int = key(32, "with position=relative: buckets of distance", at_least=2)
    relative_max_distance: int = key(128, "with position=relative: where the last bucket begins", at_least=2)
    embed_scale: bool = key(False, "multiply embeddings by sqrt(embed_dim)")
    embed_norm: bool = key(False, "normalise the embeddings (BART)")
    tie_embeddings: bool = key(True, "the head is the embedding table; encoder and decoder always share it")
    head_scale: float = key(1.0, "multiplies the last hidden states before the head (T5: 1/sqrt(embed_dim))")
    head_bias: bool = key(False, "a bias of the logits (Marian)")

    def __post_init__(self) -> None:
        super().__post_init__()
        _even_for_sines(self)
        for name, value in (("sliding_window", self.sliding_window), ("block", self.block)):
            if value:
                raise ConfigError(f"model.{name}={value}: encoder-decoders have none; leave it out")
        exact = self.relative_buckets // 4  # of the encoder, whose buckets serve two directions
        if (
            self.position is Position.relative
            and not 1 <= exact < self.relative_buckets // 2 < self.relative_max_distance
        ):
            raise ConfigError(
                f"model.relative_buckets={self.relative_buckets} with model.relative_max_distance="
                f"{self.relative_max_distance}: set 4 buckets or more, and a distance of more than half of them"
            )

    def stacks(self) -> dict[str, int]:
        return {"num_layers": self.num_layers, "num_decoder_layers": self.decoder_layers}

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def source_len(self) -> int:
        return self.max_source_len or self.max_seq_len


class Pooling(Enum):
    """What stands for a whole image."""

    first = 0  # a learned class token before the patches
    mean = 1  # the mean over the patches


@dataclass
class ViTConfig(TransformerConfig):
    """Vision transformers: ViT, DeiT-like, CLIP's image tower."""

    head_keys: ClassVar[tuple[str, ...]] = ("num_classes",)

    position: Position = again("position", Position.learned)
    norm: Norm = again("norm", Norm.layernorm)
    norm_eps: float = again("norm_eps", 1e-6)
    activation: Activation = again("activation", Activation.gelu)
    bias: bool = again("bias", True)
    residual_init: ResidualInit = again("residual_init", ResidualInit.plain)
    image_size: int = key(224, "height and width of an image in pixels", at_least=1)
    patch_size: int = key(16, "height and width of a patch in pixels", at_least=1)
    num_channels: int = key(3, "colours of a pixel", at_least=1)
    num_classes: int = key(1000, "classes of the head; 0 = no head", at_least=0)
    pooling: Pooling = key(Pooling.first, "what stands for the image: a class token, or the mean over patches")
    patch_bias: bool = key(True, "a bias in the patch embedding")
    embed_norm: bool = key(False, "normalise the embeddings (CLIP)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch_size:
            fit = self.image_size // self.patch_size * self.patch_size
            raise ConfigError(
                f"model.image_size={self.image_size} is not divisible by model.patch_size={self.patch_size}: "
                f"nearest that fit are {fit or self.patch_size} and {fit + self.patch_size}"
            )
        _refuse_position(self, Position.relative)
        if self.norm_order is NormOrder.post:
            raise ConfigError("model.norm_order=post: ViT ends in a norm of its own; set pre or both")
        if self.position is Position.sinusoidal and self.embed_dim % 4:
            raise ConfigError(f"model.embed_dim={self.embed_dim}: two-dimensional sines need a multiple of 4")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        """The length of the sequence that an image is: its patches, and a class token."""
        return self.num_patches + (self.pooling is Pooling.first)


@dataclass
class CLIPConfig(ModelConfig):
    """Two towers that agree on which text belongs to which image (Radford et al. 2021)."""

    text: GPTConfig = key(GPTConfig(), "the text tower, causal; its last token stands for the text")
    vision: ViTConfig = key(ViTConfig(num_classes=0), "the image tower")
    projection_dim: int = key(512, "size of the space both project to", at_least=1)
    logit_scale_init: float = key(2.6592, "initial log of the scale of the similarities: ln(1 / 0.07)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("balance_loss", "router_z_loss"):
            text, vision = getattr(self.text, name), getattr(self.vision, name)
            if text != vision and self.text.num_experts and self.vision.num_experts:
                raise ConfigError(
                    f"model.text.{name}={text} and model.vision.{name}={vision}: both towers have experts, and one "
                    f"weight; set the same"
                )

    def towers(self) -> dict[str, TransformerConfig]:
        return {"model.text": self.text, "model.vision": self.vision}

    @property
    def vocab_size(self) -> int:
        """Rows of the text tower's embedding table."""
        return self.text.vocab_size


# A family's schema by the name its presets inherit from.
MODEL_SCHEMAS: dict[str, type[ModelConfig]] = {
    "gpt_schema": GPTConfig,
    "bert_schema": BERTConfig,
    "encdec_schema": EncDecConfig,
    "vit_schema": ViTConfig,
    "clip_schema": CLIPConfig,
}


# Which families learn which objective.
MODELS_FOR: dict[ObjectiveKind, tuple[type[ModelConfig], ...]] = {
    ObjectiveKind.causal_lm: (GPTConfig,),
    ObjectiveKind.chat: (GPTConfig,),
    ObjectiveKind.masked_lm: (BERTConfig,),
    ObjectiveKind.span_corruption: (EncDecConfig,),
    ObjectiveKind.seq2seq: (EncDecConfig,),
    ObjectiveKind.classify: (ViTConfig, BERTConfig),
    ObjectiveKind.classify_tokens: (BERTConfig,),
    ObjectiveKind.regress: (ViTConfig, BERTConfig),
    ObjectiveKind.contrastive: (CLIPConfig,),
}
