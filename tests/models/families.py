"""A tiny member of every kind of model, with a batch: what the contract, sharding and gradient tests run over."""

from typing import Any, NamedTuple

import numpy as np

from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import Activation, ModelConfig, Norm, NormOrder, Position, RopeScaling
from lmkit.config.sections.objective import ObjectiveKind

TINY: dict[str, Any] = {"num_layers": 2, "num_heads": 4, "embed_dim": 64}
TEXT: dict[str, Any] = TINY | {"vocab_size": 256}
IMAGE: dict[str, Any] = TINY | {"image_size": 24, "patch_size": 8}


class Kind(NamedTuple):
    """A configuration and the objective that trains it."""

    config: ModelConfig
    objective: ObjectiveKind


KINDS: dict[str, Kind] = {
    "gpt": Kind(GPTConfig(**TEXT), ObjectiveKind.causal_lm),
    "gpt2": Kind(
        GPTConfig(**TEXT, position=Position.learned, norm=Norm.layernorm, bias=True, tie_embeddings=True),
        ObjectiveKind.causal_lm,
    ),
    "llama3": Kind(
        GPTConfig(**TEXT, gated=True, num_kv_heads=2, rope_scaling=RopeScaling.llama3, rope_factor=8.0),
        ObjectiveKind.causal_lm,
    ),
    "moe": Kind(
        GPTConfig(**TEXT, gated=True, num_experts=4, shared_experts=1, balance_loss=0.1, router_z_loss=0.1),
        ObjectiveKind.causal_lm,
    ),
    "moe_capacity": Kind(
        GPTConfig(**TEXT, gated=True, num_experts=4, capacity_factor=0.8, balance_loss=0.1), ObjectiveKind.causal_lm
    ),
    "bert": Kind(BERTConfig(**TEXT, next_sentence_head=True), ObjectiveKind.masked_lm),
    "modernbert": Kind(
        BERTConfig(
            **(TEXT | {"num_layers": 3}), norm_order=NormOrder.pre, position=Position.rope, bias=False, gated=True,
            sliding_window=8, global_every=3, global_first=0, type_vocab_size=0, pooler=False,
        ),
        ObjectiveKind.masked_lm,
    ),
    "transformer": Kind(EncDecConfig(**TEXT, embed_scale=True, head_bias=True), ObjectiveKind.seq2seq),
    "t5": Kind(
        EncDecConfig(**TEXT, position=Position.relative, norm=Norm.rmsnorm, norm_order=NormOrder.pre, bias=False,
                     gated=True, tie_embeddings=False, attention_scale=1.0, activation=Activation.gelu_tanh),
        ObjectiveKind.seq2seq,
    ),
    "whisper": Kind(
        EncDecConfig(**TEXT, position=Position.learned, norm_order=NormOrder.pre, num_mels=20, key_bias=False),
        ObjectiveKind.seq2seq,
    ),
    "vit": Kind(ViTConfig(**IMAGE, num_classes=8), ObjectiveKind.classify),
    "clip": Kind(
        CLIPConfig(
            text=GPTConfig(**TEXT, position=Position.learned, norm=Norm.layernorm, bias=True, tie_embeddings=True),
            vision=ViTConfig(**IMAGE, num_classes=0, embed_norm=True, patch_bias=False), projection_dim=32,
        ),
        ObjectiveKind.contrastive,
    ),
}  # fmt: skip


def batch_of(config: Any, rows: int = 8, seq: int = 32) -> dict[str, np.ndarray]:
    """A random batch for the family's objective, with uneven weights, packed segments and padding."""
    rng = np.random.default_rng(0)
    if isinstance(config, CLIPConfig):
        side = config.vision.image_size
        return {
            "inputs": rng.integers(0, 256, (rows, seq), dtype=np.int32),
            "last": rng.integers(0, seq, rows, dtype=np.int32),
            "images": rng.normal(size=(rows, side, side, 3)).astype(np.float32),
        }
    if isinstance(config, ViTConfig):
        shape = (rows, config.image_size, config.image_size, config.num_channels)
        return {
            "images": rng.normal(size=shape).astype(np.float32),
            "labels": rng.integers(0, config.num_classes, rows, dtype=np.int32),
            "weights": (np.arange(rows) % 3).astype(np.float32),
        }
    tokens = rng.integers(0, 256, (rows, seq), dtype=np.int32)
    batch = {
        "inputs": tokens,
        "targets": rng.integers(0, 256, (rows, seq), dtype=np.int32),
        "weights": (tokens % 5 != 0).astype(np.float32) * (np.arange(rows)[:, None] % 3 != 1),
        "segment_ids": (tokens < 20).cumsum(-1).astype(np.int32),
    }
    if isinstance(config, BERTConfig) and config.type_vocab_size:
        batch["types"] = (tokens > 128).astype(np.int32)
        batch["next_sentence"] = rng.integers(0, 2, rows, dtype=np.int32)
    if isinstance(config, EncDecConfig):
        if config.num_mels:
            batch["source"] = rng.normal(size=(rows, 2 * seq, config.num_mels)).astype(np.float32)
        else:
            batch["source"] = rng.integers(0, 256, (rows, 2 * seq), dtype=np.int32)
            batch["source_segment_ids"] = np.repeat(batch["segment_ids"], 2, axis=1)
    return batch
