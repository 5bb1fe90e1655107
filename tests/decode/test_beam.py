"""Beams wide enough to keep everything find what trying everything finds. Parity with transformers is elsewhere."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import params_of, rotated
from lmkit.config.sections.families import GPTConfig
from lmkit.decode import BeamSearch, Decoder, Prompts, Sampling
from lmkit.models import build_model

VOCAB, NEW, END = 5, 3, 4
CONFIG = GPTConfig(vocab_size=VOCAB, num_layers=1, num_heads=2, embed_dim=16, init_std=0.6)
PROMPTS = [[1, 2, 3], [0]]


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return params_of(build_model(CONFIG, nnx.Rngs(1)))


def log_probabilities(run: Any, prompt: list[int], every: list[tuple[int, ...]]) -> list[float]:
    """Of each of the continuations, which may be shorter than NEW."""
    padded = [[*prompt, *tokens, *[0] * (NEW - len(tokens))] for tokens in every]
    log_probs = np.asarray(jax.nn.log_softmax(run(jnp.array(padded)), axis=-1))
    return [
        float(sum(log_probs[row, len(prompt) - 1 + number, token] for number, token in enumerate(tokens)))
        for row, tokens in enumerate(every)
    ]


@pytest.mark.parametrize(("ends", "penalty"), rotated([([], 1.0), ([], -0.5), ([END], 0.0)], ([END], 0.0)))
def test_wide_beams_find_the_best_thirty(model: tuple[Any, Any], ends: list[int], penalty: float) -> None:
    """Every sequence of three of five tokens, and with an end, every shorter one that ends."""
    graph, params = model
    run = jax.jit(nnx.merge(graph, nnx.State(params)))
    decoder = Decoder(lambda p: nnx.merge(graph, nnx.State(p)), CONFIG, Sampling(), end_ids=ends)
    found = BeamSearch(decoder, 30, length_penalty=penalty).search(params, Prompts(PROMPTS), max_new_tokens=NEW)
    for prompt, beams in zip(PROMPTS, found, strict=True):
        every = [
            tokens for length in range(1, NEW + 1) for tokens in itertools.product(range(VOCAB), repeat=length)
            if not set(tokens[:-1]) & set(ends) and (length == NEW or tokens[-1] in ends)
        ]  # fmt: skip
        sums = log_probabilities(run, prompt, every)
        scores = {tokens: one / len(tokens) ** penalty for tokens, one in zip(every, sums, strict=True)}
        best = sorted(scores, key=lambda tokens: -scores[tokens])[:30]
        assert beams[0][0] == [token for token in best[0] if token not in ends]
        np.testing.assert_allclose([score for _, score in beams], [scores[tokens] for tokens in best], atol=1e-4)


def test_one_beam_is_greedy(model: tuple[Any, Any]) -> None:
    graph, params = model
    decoder = Decoder(lambda p: nnx.merge(graph, nnx.State(p)), CONFIG, Sampling())
    greedy = decoder.generate(params, Prompts(PROMPTS), max_new_tokens=8)
    found = BeamSearch(decoder, 1).search(params, Prompts(PROMPTS), max_new_tokens=8)
    assert [row[0][0] for row in found] == greedy


def test_longer_ones_win_with_a_higher_penalty(model: tuple[Any, Any]) -> None:
    """And rows do not influence each other."""
    graph, params = model
    decoder = Decoder(lambda p: nnx.merge(graph, nnx.State(p)), CONFIG, Sampling(), end_ids=[END])
    lengths = []
    for penalty in (-2.0, 0.0, 4.0):
        beams = BeamSearch(decoder, 4, length_penalty=penalty)
        together = beams.search(params, Prompts(PROMPTS), max_new_tokens=6)
        if not penalty:
            alone = [beams.search(params, Prompts([prompt]), max_new_tokens=6)[0] for prompt in PROMPTS]
            assert [row[0][0] for row in together] == [row[0][0] for row in alone]
        lengths.append(sum(len(row[0][0]) for row in together))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[2]
