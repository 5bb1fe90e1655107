"""How many floating-point operations a training step takes, by formula."""

import math
from typing import Any

import jax

from lmkit.config.sections.families import BERTConfig, CLIPConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import ModelConfig, TransformerConfig
from lmkit.nn.param import ParamSpec

_PASSES = 3  # forward, and twice backward: to the inputs and to the weights
SCORES = "scores"


def flops_per_row(model: ModelConfig, specs: Any, source_len: int, target_len: int, predicted: int = 0) -> float:
    """Floating-point operations of a training step per row of the batch, forward and backward.

    2 per parameter of a matrix product, token and pass (Kaplan et al. 2020, section 2.1), and attention: 2 products x
    2 operations x keys x N H per query and pass. Causal attention and windows count as what they see, a mixture's
    experts as those that a token goes to. Look-ups, norms and softmax count nothing.

    Args:
        specs: tree of ParamSpec.
        source_len: tokens of a row (of the source, where there is one).
        target_len: tokens of the target.
        predicted: tokens that the vocabulary's head works on; 0 for all.
    """
    return sum(flops_of_each(model, specs, source_len, target_len, predicted).values())


def flops_of_each(
    model: ModelConfig, specs: Any, source_len: int, target_len: int, predicted: int = 0
) -> dict[str, float]:
    """The same by parameter, as dotted paths, and of SCORES: attention's own products. Arguments as above."""
    flat, _ = jax.tree_util.tree_flatten_with_path(specs)
    each = {SCORES: 4.0 * _PASSES * _scores(model, source_len, target_len)}
    for path, spec in flat:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        each[name] = 2.0 * _PASSES * _work(model, name, spec) * _tokens(model, name, source_len, target_len, predicted)
    return each


def _work(model: ModelConfig, name: str, spec: ParamSpec) -> float:
    """The parameter's elements that a token meets in a product."""
    size = float(math.prod(spec.shape))
    if name.endswith("table"):  # a look-up costs nothing; the head's product does
        return size if is_head(model, name) else 0.0
    if spec.num_in == 0:
        return 0.0
    if "expert" in spec.dims[: spec.stacked]:
        part = next(part for part in model.towers().values() if part.num_experts)
        return size * part.experts_per_token / part.num_experts
    return size


def is_head(model: ModelConfig, name: str) -> bool:
    """Whether a table turns hidden states into logits."""
    if name == "head.table":
        return True
    if name != "embed.table":
        return False
    return bool(getattr(model, "tie_embeddings", False)) or (isinstance(model, BERTConfig) and model.lm_head)


def _tokens(model: ModelConfig, name: str, source: int, target: int, predicted: int) -> int:
    """How many tokens of a row meet a parameter."""
    if isinstance(model, CLIPConfig):
        tower, _, rest = name.partition(".")
        if tower.endswith("projection"):
            return 1
        return _tokens(model.text if tower == "text" else model.vision, rest, source, target, predicted)
    if isinstance(model, ViTConfig):
        return 1 if name.startswith("head") else model.num_patches
    if isinstance(model, EncDecConfig):
        if name.startswith("frontend"):
            return 2 * source if "first" in name else source
        in_cross = "cross.k." in name or "cross.v." in name
        return source if name.startswith("encoder") or in_cross else target
    if name.startswith(("pooler", "next_sentence", "classifier")):
        return 1
    return predicted or source if name.startswith(("lm_head", "embed")) and isinstance(model, BERTConfig) else source


def _scores(model: ModelConfig, source: int, target: int) -> float:
    """Sum over layers of queries x keys x N H."""
    if isinstance(model, CLIPConfig):
        return _scores(model.text, source, target) + _scores(model.vision, source, target)
    if isinstance(model, EncDecConfig):
        width = model.num_heads * model.head_size
        decoder = model.decoder_layers * (target * target / 2 + target * source)
        return width * (model.num_layers * source * source + decoder)
    assert isinstance(model, TransformerConfig)
    length = model.num_patches if isinstance(model, ViTConfig) else source
    keys = sum(min(model.window_of(layer) or length, length) for layer in range(model.num_layers))
    return model.num_heads * model.head_size * length * keys * (0.5 if isinstance(model, GPTConfig) else 1.0)
