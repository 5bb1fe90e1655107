"""The floating-point operations that MFU is counted in."""

import pytest
from flax import nnx

from helpers import tiny_config
from lmkit.config.sections.families import BERTConfig, EncDecConfig, GPTConfig, ViTConfig
from lmkit.config.sections.model import ModelConfig, Position
from lmkit.cost.flops import flops_per_row
from lmkit.models import build_model
from lmkit.nn.param import param_specs


def flops(config: ModelConfig, source: int, target: int = 0, predicted: int = 0) -> float:
    specs = param_specs(nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[1])
    return flops_per_row(config, specs, source, target, predicted)


def test_of_gpt2_small() -> None:
    """6 for each element of its matrices and its tied head, and half of the [T, T] attention."""
    config = GPTConfig(vocab_size=50257, position=Position.learned, tie_embeddings=True)
    matrices = 12 * 12 * 768**2 + 50257 * 768
    assert flops(config, 1024) == 1024 * (6 * matrices + 6 * 12 * 768 * 1024)


def test_windows_count_what_they_see() -> None:
    full, windowed = tiny_config(num_layers=2), tiny_config(num_layers=2, sliding_window=16, global_every=2)
    assert (flops(full, 64) - flops(windowed, 64)) / 64 == 6 * 64 * (64 - 16)


def test_experts_count_as_those_that_a_token_meets() -> None:
    one = tiny_config(num_experts=2, experts_per_token=1, num_layers=1)
    two = tiny_config(num_experts=2, experts_per_token=2, num_layers=1)
    assert flops(two, 8) - flops(one, 8) == 8 * 6 * (2 + one.gated) * one.embed_dim * one.mlp_size


def test_shared_experts_count_for_every_token() -> None:
    none, two = (tiny_config(num_experts=4, shared_experts=n, num_layers=1) for n in (0, 2))
    assert flops(two, 8) - flops(none, 8) == 8 * 6 * 2 * none.embed_dim * 2 * none.mlp_size


def test_an_encoder_sees_both_sides_and_predicts_few() -> None:
    config = BERTConfig(
        vocab_size=100, num_layers=1, num_heads=1, embed_dim=8, mlp_dim=16, max_seq_len=32, pooler=False
    )
    block, head = 4 * 64 + 2 * 8 * 16, 64 + 800
    assert flops(config, 32, predicted=5) == 6 * (32 * block + 5 * head) + 12 * 8 * 32 * 32


def test_sources_and_targets_have_their_own_lengths() -> None:
    config = EncDecConfig(vocab_size=50, num_layers=1, num_heads=1, embed_dim=8, mlp_dim=16)
    block, cross = 4 * 64 + 2 * 8 * 16, 2 * 64
    work = 20 * (block + cross) + 10 * (block + cross + 50 * 8)  # keys and values of the source, queries of the target
    attention = 8 * (20 * 20 + 10 * 10 / 2 + 10 * 20)
    assert flops(config, 20, 10) == 6 * work + 12 * attention


def test_an_image_is_its_patches() -> None:
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, num_classes=10, num_layers=1, num_heads=1, embed_dim=8, mlp_dim=16
    )
    work = 16 * (4 * 8 + 4 * 64 + 2 * 8 * 16) + 10 * 8
    assert flops(config, 16) == pytest.approx(6 * work + 12 * 8 * 16 * 16)
