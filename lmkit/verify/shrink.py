"""A small experiment with the structure of a large one: every kind of layer, head and mask, few of each."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmkit.config.arithmetic.mesh import batch_shards
from lmkit.config.arithmetic.pipeline import choose_microbatches
from lmkit.config.experiment import Experiment
from lmkit.config.sections.families import CLIPConfig, EncDecConfig, ViTConfig
from lmkit.config.sections.model import ContextAttention, DType, LinearDType, ModelConfig, TransformerConfig

_HEAD, _ROWS = 8, 2  # size of a head; rows on each device for each micro-batch


def shrink(experiment: Experiment, sizes: Mapping[str, int]) -> Experiment:
    """The experiment with a model of a few thousand parameters that a mesh of these sizes divides, in float32.

    Whether key heads are shared, experts and their routing, windows, biases, norms, positions, ties and dropout stay
    as they are.
    """
    tensor = sizes.get("tensor", 1)
    shards = batch_shards(sizes)
    seq_len = 16 * max(tensor * sizes.get("context", 1), 2)  # of which zig-zag takes two chunks a device
    accumulate = min(experiment.train.accumulate_steps, 2)
    return dataclasses.replace(
        experiment,
        model=_shrink_model(experiment.model, sizes, seq_len),
        data=dataclasses.replace(experiment.data, seq_len=seq_len, target_len=0),
        train=dataclasses.replace(
            experiment.train, batch_size=_ROWS * shards * accumulate, accumulate_steps=accumulate, folds=0
        ),
        objective=dataclasses.replace(experiment.objective, chunk_tokens=min(experiment.objective.chunk_tokens, 16)),
    )


def _shrink_model(model: ModelConfig, sizes: Mapping[str, int], seq_len: int) -> Any:
    if isinstance(model, CLIPConfig):
        towers = {name: _shrink_model(getattr(model, name), sizes, seq_len) for name in ("text", "vision")}
        return dataclasses.replace(model, projection_dim=8, **towers)
    assert isinstance(model, TransformerConfig)
    tensor, fsdp, stages = (sizes.get(axis, 1) for axis in ("tensor", "fsdp", "stage"))
    rounds = min(model.rounds, 2) if stages > 1 else 1
    chunks = rounds * stages
    first = int("num_layers - 1" in model.stacks())  # a stack of its own
    layers = -(-(_layers(model) - first) // chunks) * chunks + first
    group = model.num_heads // model.kv_heads
    kv_heads = tensor if model.kv_heads % tensor == 0 and model.kv_heads >= tensor else model.kv_heads
    kv_heads = max(kv_heads, min(model.kv_heads, 2))
    heads = kv_heads * min(group, 2)
    if model.context_attention is ContextAttention.all_to_all and heads % (tensor * sizes.get("context", 1)):
        heads, kv_heads = (n * sizes.get("context", 1) for n in (heads, kv_heads))  # they are dealt out
    changes: dict[str, Any] = {
        "num_layers": layers,
        "rounds": rounds,
        "microbatches": model.microbatches and choose_microbatches(model.microbatches, _ROWS * stages, stages),
        "num_heads": heads,
        "num_kv_heads": 0 if heads == kv_heads else kv_heads,
        "head_dim": _HEAD,
        "embed_dim": 16 * fsdp,
        "mlp_dim": 24 * tensor,
        "vocab_size": 40 * tensor,
        "max_seq_len": seq_len,
        "dtype": DType.float32,
        "linear_dtype": LinearDType.same,  # in float8 a sum in another order may round to another number
        "scan_layers": False,  # so that each layer's collectives can be counted; the numbers are the same
        "sliding_window": min(model.sliding_window, seq_len // 4),
        "num_experts": _experts(model, sizes.get("expert", 1)),
    }
    if isinstance(model, ViTConfig):
        patch = min(model.patch_size, 4)
        changes |= {"patch_size": patch, "image_size": 4 * patch, "num_classes": min(model.num_classes, 8)}
    if isinstance(model, EncDecConfig):
        changes |= {"num_decoder_layers": max(min(model.decoder_layers, 2), chunks), "num_mels": min(model.num_mels, 8)}
        changes |= {"max_source_len": 0}
    if hasattr(model, "num_classes") and not isinstance(model, ViTConfig):
        changes["num_classes"] = min(model.num_classes, 8)  # type: ignore[attr-defined]
    return dataclasses.replace(model, **changes)


def _experts(model: TransformerConfig, axis: int) -> int:
    """As many as a token goes to, four, and two on each device, at least; the axis divides them."""
    few = max(4, model.experts_per_token, 2 * axis)
    return min(model.num_experts, -(-few // axis) * axis)


def _layers(model: TransformerConfig) -> int:
    """Enough for every kind of layer to occur: with a window, up to the first that has none."""
    if model.sliding_window and model.global_every:
        kinds = [model.window_of(layer) > 0 for layer in range(model.num_layers)]
        first = next((n for n, kind in enumerate(kinds) if kind != kinds[0]), 1)
        return min(max(first + 1, 2), model.num_layers)
    return min(model.num_layers, 2)
