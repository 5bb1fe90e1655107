"""Models called wrongly say what is wrong and the way out, in one line, before anything is compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lmkit.config.base import ConfigError
from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import ModelConfig, Position
from lmkit.models import build_model

SMALL: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "embed_dim": 8}
TEXT: dict[str, Any] = SMALL | {"vocab_size": 16, "max_seq_len": 8}
IMAGE: dict[str, Any] = SMALL | {"image_size": 4, "patch_size": 2}
CONFIGS: dict[str, ModelConfig] = {
    "gpt": GPTConfig(**TEXT, position=Position.learned),
    "bert": BERTConfig(**TEXT),
    "bare": BERTConfig(**TEXT, pooler=False, lm_head=False),
    "encdec": EncDecConfig(**TEXT, position=Position.learned),
    "whisper": EncDecConfig(**TEXT, num_mels=5),
    "vit": ViTConfig(**IMAGE, num_classes=3),
    "headless": ViTConfig(**IMAGE, num_classes=0),
    "clip": CLIPConfig(text=GPTConfig(**TEXT, tie_embeddings=True), vision=ViTConfig(**IMAGE, num_classes=0)),
}
TOKENS, IDS, LONG = jnp.ones((2, 4), jnp.int32), jnp.ones((2, 3), jnp.int32), jnp.ones((2, 9), jnp.int32)
FLOATS, HIDDEN, KEY = jnp.ones((2, 4)), jnp.ones((2, 4, 8)), jax.random.key(0)
IMAGES, FRAMES, ONES = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 6, 5)), jnp.ones(2, jnp.int32)

CASES: list[tuple[str, Callable[[Any], Any], str]] = [
    ("gpt", lambda m: m([[1, 2]]), "tokens_BT is a list: give an array"),
    ("gpt", lambda m: m(None), "tokens_BT is None"),
    ("gpt", lambda m: m(TOKENS[0]), r"shape \(4,\): it must be \[B, T\].* one row is tokens_BT\[None\]"),
    ("gpt", lambda m: m(TOKENS[:, :0]), "at least one token"),
    ("gpt", lambda m: m(FLOATS), "tokens_BT is float32: it must be int"),
    ("gpt", lambda m: m(LONG), "sequence of 9 is longer than the model's 8 positions.*max_seq_len=9"),
    ("gpt", lambda m: m(TOKENS, IDS), r"segment_ids_BT has shape \(2, 3\), tokens_BT has \(2, 4\)"),
    ("gpt", lambda m: m(TOKENS, FLOATS), "segment_ids_BT is float32: it must be int"),
    ("gpt", lambda m: m(TOKENS, None, IDS), r"positions_BT has shape \(2, 3\)"),
    ("gpt", lambda m: m(TOKENS, key=0), r"key=0 is no key of dropout: give jax.random.key\(0\)"),
    ("gpt", lambda m: m(TOKENS, key=jax.random.split(KEY)), r"key=key<fry> of shape \(2,\)"),
    ("gpt", lambda m: m.logits(TOKENS), r"hidden_BTD has shape \(2, 4\): it must be \[B, T, 8\]"),
    ("gpt", lambda m: m.init_cache(2, 0), "batch=2 and length=0: both must be at least 1"),
    ("gpt", lambda m: m.extend(TOKENS, ONES, None), r"cache is a NoneType.*model.init_cache\(batch, length\)"),
    ("gpt", lambda m: m.extend(TOKENS, ONES[:1], m.init_cache(2, 8)), r"num_new_B has shape \(1,\).*\(2,\)"),
    ("gpt", lambda m: m.extend(TOKENS, ONES, m.init_cache(3, 8)), r"shape \(1, 3, 8, 2, 4\).*init_cache\(batch=2"),
    ("gpt", lambda m: m.extend(TOKENS, ONES, m.init_cache(2, 3)), "4 tokens for a cache of 3"),
    ("gpt", lambda m: m.extend(FLOATS, ONES, m.init_cache(2, 8)), "tokens_BT is float32"),
    ("bert", lambda m: m(TOKENS[0]), r"it must be \[B, T\]"),
    ("bert", lambda m: m.encode(TOKENS, types_BT=IDS), r"types_BT has shape \(2, 3\)"),
    ("bert", lambda m: m.encode(LONG), "sequence of 9"),
    ("bert", lambda m: m.pool(TOKENS), r"hidden_BTD has shape \(2, 4\): it must be \[B, T, 8\]"),
    ("bert", lambda m: m.next_sentence_logits(HIDDEN), "no next-sentence head: make it with model.next_sentence_head="),
    ("bert", lambda m: m.class_logits(HIDDEN), "no classes: make it with model.num_classes"),
    ("bare", lambda m: m(TOKENS), "no masked-LM head: make it with model.lm_head=true"),
    ("bare", lambda m: m.head_bias_V(), "no masked-LM head"),
    ("bare", lambda m: m.pool(HIDDEN), "no pooler: make it with model.pooler=true"),
    ("encdec", lambda m: m(None, TOKENS), "source is None"),
    ("encdec", lambda m: m(FLOATS, TOKENS), "source is float32: it must be int"),
    ("encdec", lambda m: m(LONG, TOKENS), "sequence of 9.*max_source_len"),
    ("encdec", lambda m: m(TOKENS, TOKENS[:1]), "source has 2 rows, tokens_BT has 1"),
    ("encdec", lambda m: m(TOKENS, TOKENS, IDS), r"segment_ids_BS has shape \(2, 3\).*\(2, 4\)"),
    ("encdec", lambda m: m(TOKENS, TOKENS, None, IDS), r"segment_ids_BT has shape \(2, 3\)"),
    ("encdec", lambda m: m(TOKENS, TOKENS, key=1), "key=1 is no key"),
    ("encdec", lambda m: m.decode(HIDDEN, TOKENS), r"memory is a .*: give what model.encode\(source\) returned"),
    ("encdec", lambda m: m.extend(TOKENS, ONES, m.init_cache(2, 8)), "memory is None.*comes with the first tokens"),
    ("whisper", lambda m: m(TOKENS, TOKENS), r"source has shape \(2, 4\): the model takes log-mel frames \[B, F, 5\]"),
    ("whisper", lambda m: m(FRAMES[..., :4], TOKENS), r"source has shape \(2, 6, 4\)"),
    ("whisper", lambda m: m(FRAMES.astype(jnp.int32), TOKENS), "source is int32"),
    ("whisper", lambda m: m(FRAMES, TOKENS, TOKENS), r"the encoder's inputs are \(2, 3\)"),
    ("vit", lambda m: m(IMAGES[0]), r"array of shape \(4, 4, 3\) for \[B, H, W, C\], the model takes \(4, 4, 3\)"),
    ("vit", lambda m: m(IMAGES[:, :2]), r"images of shape \(2, 4, 3\), the model takes \(4, 4, 3\): resize"),
    ("vit", lambda m: m(IMAGES[..., :1]), r"shape \(4, 4, 1\).*num_channels"),
    ("vit", lambda m: m(IMAGES.astype(jnp.uint8)), "images are uint8: give floats"),
    ("vit", lambda m: m(IMAGES, 0), "key=0 is no key"),
    ("vit", lambda m: m.pool(IMAGES), r"hidden_BPD has shape \(2, 4, 4, 3\)"),
    ("headless", lambda m: m(IMAGES), "no classes: make it with model.num_classes"),
    ("clip", lambda m: m(TOKENS, ONES[:1], IMAGES), r"last_B has shape \(1,\), the rows of tokens_BT are \(2,\)"),
    ("clip", lambda m: m(FLOATS, ONES, IMAGES), "tokens_BT is float32"),
    ("clip", lambda m: m(TOKENS, ONES, IMAGES, 3), "key=3 is no key"),
]  # fmt: skip


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Shapes alone."""
    return {
        name: nnx.split(nnx.eval_shape(lambda config=config: build_model(config, nnx.Rngs(0))))
        for name, config in CONFIGS.items()
    }


@pytest.mark.parametrize(("name", "call", "message"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)])
def test_a_wrong_call(models: dict[str, Any], name: str, call: Callable, message: str) -> None:
    graph, state = models[name]
    with pytest.raises(ConfigError, match=message) as caught:
        jax.eval_shape(lambda state: call(nnx.merge(graph, state)), state)
    assert "\n" not in str(caught.value)


def test_a_cache_that_has_its_source_takes_no_other(models: dict[str, Any]) -> None:
    graph, state = models["encdec"]

    def twice(state: Any) -> None:
        model = nnx.merge(graph, state)
        memory = model.encode(TOKENS)
        _, cache = model.extend(TOKENS, ONES, model.init_cache(2, 8), memory=memory)
        model.extend(TOKENS, ONES, cache, memory=memory)

    with pytest.raises(ConfigError, match="holds an encoded source already"):
        jax.eval_shape(twice, state)


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda: build_model(ModelConfig(), nnx.Rngs(0)), "no model for ModelConfig"),
    (lambda: build_model(GPTConfig(**SMALL), nnx.Rngs(0)), "vocab_size=0: give the number of tokens"),
    (lambda: GPTConfig(position="learned"), "model.position='learned': give one of Position.rope"),  # type: ignore
    (lambda: GPTConfig(num_layers=2.0), "model.num_layers=2.0: give a value of type int"),  # type: ignore
])  # fmt: skip
def test_a_model_that_cannot_be_made(wrong: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()
