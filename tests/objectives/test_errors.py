"""Objectives with a model or a batch that they cannot learn with say so, naming what would do."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import ModelConfig
from lmkit.config.sections.objective import ObjectiveConfig, ObjectiveKind
from lmkit.models import build_model
from lmkit.objectives import build_objective

SMALL: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "embed_dim": 8}
TEXT: dict[str, Any] = SMALL | {"vocab_size": 16, "max_seq_len": 8}
IMAGE: dict[str, Any] = SMALL | {"image_size": 4, "patch_size": 2}
CONFIGS: dict[str, ModelConfig] = {
    "gpt": GPTConfig(**TEXT),
    "bert": BERTConfig(**TEXT),
    "bare": BERTConfig(**TEXT, lm_head=False),
    "classes": BERTConfig(**TEXT, num_classes=3),
    "words": BERTConfig(**TEXT, num_classes=3, classify_tokens=True),
    "encdec": EncDecConfig(**TEXT),
    "vit": ViTConfig(**IMAGE, num_classes=3),
    "headless": ViTConfig(**IMAGE, num_classes=0),
    "clip": CLIPConfig(text=GPTConfig(**TEXT, tie_embeddings=True), vision=ViTConfig(**IMAGE, num_classes=0)),
}
INTS, SHORT, FLOATS, ONES = (
    np.ones((2, 4), np.int32),
    np.ones((2, 3), np.int32),
    np.ones((2, 4), np.float32),
    np.ones(2),
)
LABELS, IMAGES = np.ones(2, np.int32), np.ones((2, 4, 4, 3), np.float32)
TOKENS = {"inputs": INTS, "targets": INTS, "weights": FLOATS}

CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("causal_lm", "bert", TOKENS, "causal_lm learns with GPT; this is BERT.*kind to one of masked_lm, classify"),
    ("masked_lm", "gpt", TOKENS, "masked_lm learns with BERT; this is GPT: give another.*causal_lm, chat"),
    ("seq2seq", "gpt", TOKENS, "seq2seq learns with EncDec; this is GPT"),
    ("classify", "gpt", TOKENS, "classify learns with ViT or BERT; this is GPT"),
    ("contrastive", "vit", TOKENS, "contrastive learns with CLIP; this is ViT"),
    ("masked_lm", "bare", TOKENS, "masked_lm needs model.lm_head=true"),
    ("masked_lm", "bert", TOKENS | {"next_sentence": LABELS}, "needs model.next_sentence_head=true"),
    ("classify", "bert", {"inputs": INTS, "labels": LABELS}, "classify needs model.num_classes=N"),
    ("classify", "headless", {"images": IMAGES, "labels": LABELS}, "classify needs model.num_classes=N"),
    ("classify_tokens", "classes", {"inputs": INTS, "labels": INTS}, "needs model.classify_tokens=true"),
    ("regress", "words", {"inputs": INTS, "targets": ONES}, "needs model.classify_tokens=false"),
    ("causal_lm", "gpt", {"inputs": INTS}, "reads inputs, targets, weights .* has inputs: add targets"),
    ("causal_lm", "gpt", {}, "this one has nothing: add inputs, targets, weights"),
    ("seq2seq", "encdec", TOKENS, "add source"),
    ("classify", "vit", {"inputs": INTS, "labels": LABELS}, "add images"),
    ("classify", "vit", {"images": IMAGES, "labels": LABELS, "share": ONES}, "add other_labels"),
    ("contrastive", "clip", {"inputs": INTS, "images": IMAGES}, "add last"),
    ("causal_lm", "gpt", TOKENS | {"targets": SHORT}, r"targets has shape \(2, 3\), the hidden states are \(2, 4\)"),
    ("causal_lm", "gpt", TOKENS | {"weights": SHORT}, r"weights has shape \(2, 3\)"),
    ("causal_lm", "gpt", TOKENS | {"targets": FLOATS}, "targets is float32: it must be int"),
    ("causal_lm", "gpt", TOKENS | {"inputs": FLOATS}, "tokens_BT is float32"),
    ("causal_lm", "gpt", TOKENS | {"segment_ids": SHORT}, r"segment_ids_BT has shape \(2, 3\)"),
    ("masked_lm", "bert", TOKENS | {"masked_positions": SHORT}, r"targets has shape \(2, 4\), .* are \(2, 3\)"),
    ("masked_lm", "bert", TOKENS | {"masked_positions": ONES}, r"masked_positions has shape \(2,\): it must be"),
    ("classify", "vit", {"images": IMAGES, "labels": INTS}, r"labels has shape \(2, 4\), .* are \(2,\)"),
    ("classify", "vit", {"images": IMAGES, "labels": ONES}, "labels is float64: it must be int"),
    ("classify_tokens", "words", {"inputs": INTS, "labels": LABELS}, r"labels has shape \(2,\)"),
    ("regress", "vit", {"images": IMAGES, "targets": FLOATS}, r"targets has shape \(2, 4\), the rows are \(2,\)"),
    ("contrastive", "clip", {"inputs": INTS, "last": LABELS, "images": IMAGES[:1]}, "images has shape .1, .* .2, "),
]  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Shapes alone."""
    return {
        name: nnx.split(nnx.eval_shape(lambda config=config: build_model(config, nnx.Rngs(0))))
        for name, config in CONFIGS.items()
    }


@pytest.mark.parametrize(
    ("kind", "name", "batch", "message"), CASES, ids=[f"{c[0]}-{c[1]}-{n}" for n, c in enumerate(CASES)]
)
def test_what_does_not_go_together(models: dict[str, Any], kind: str, name: str, batch: dict, message: str) -> None:
    objective, (graph, state) = build_objective(ObjectiveConfig(kind=ObjectiveKind[kind])), models[name]
    with pytest.raises(ConfigError, match=message) as caught:
        jax.eval_shape(lambda state: objective(nnx.merge(graph, state), batch, None), state)
    assert "\n" not in str(caught.value)


def test_a_kind_by_its_name() -> None:
    with pytest.raises(ConfigError, match="objective.kind='causal_lm': give one of ObjectiveKind.causal_lm"):
        build_objective(ObjectiveConfig(kind="causal_lm"))  # type: ignore[arg-type]
