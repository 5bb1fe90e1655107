"""A model with languages and time stamps hears sounds of any length, as `generate` does."""

import asyncio
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from helpers import params_of
from lmkit.config.base import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.families import EncDecConfig
from lmkit.config.sections.generate import GenerateConfig
from lmkit.config.sections.model import NormOrder
from lmkit.data.sources.audio import HOP, log_mel
from lmkit.data.tokens.tokenizer import ByteTokenizer
from lmkit.generate.job import Job
from lmkit.generate.show import Screen
from lmkit.generate.transcribe import transcribe
from lmkit.models import build_model
from lmkit.parallel.mesh import build_mesh
from lmkit.serve.listening import Listener
from lmkit.speech.long import STRIDE, Sound
from lmkit.weights import Codec, codec_of
from lmkit.weights.specials import Rules

PLACES = 40  # of 0.02 s
RULES = Rules(languages={"en": 257, "de": 258}, tasks={"transcribe": 259}, no_timestamps=260)
SIZE = 261 + PLACES + 1
CONFIG = EncDecConfig(
    vocab_size=SIZE, num_layers=1, num_heads=2, embed_dim=16, num_mels=8, norm_order=NormOrder.pre, max_seq_len=32,
    max_source_len=PLACES, init_std=0.4,
)  # fmt: skip


def codec() -> Codec:
    return codec_of(ByteTokenizer(), sources=True)._replace(rules=RULES, vocab_size=SIZE)


@pytest.fixture(scope="module")
def parts() -> Any:
    graph, params = params_of(build_model(CONFIG, nnx.Rngs(1)))
    mesh = build_mesh(compose(["run.name=x"]).mesh, jax.devices()[:1])
    merge = lambda params: nnx.merge(graph, nnx.State(params))  # noqa: E731
    listener = Listener(merge, CONFIG, params, mesh, codec(), places=PLACES, queue=4)
    listener.compile()
    yield listener, params
    listener.close()


def test_segments_are_those_of_generate(parts: Any) -> None:
    listener, params = parts
    clip = np.random.default_rng(3).normal(size=40_000).astype(np.float32) / 9  # three windows or more
    heard = asyncio.run(listener.hear(clip, "german"))
    assert heard.language == "german"
    assert heard.seconds == 2.5
    settings = GenerateConfig(audio=["x"], timestamps=True, temperature=0.0, max_new_tokens=16, batch_size=1)
    start = [*codec().start_ids, 258, 259]
    length = -(-len(clip) // HOP)
    sound = Sound(0, log_mel(clip, 8, num_frames=length + STRIDE * PLACES), length)
    job = Job(listener._decoder, params, codec(), CONFIG, settings, 0, start, [])
    (expected,) = transcribe(job, [sound], PLACES, Screen(["x"], echo=False))
    assert heard.segments == expected.segments
    assert (heard.text, heard.tokens) == (expected.text, expected.tokens)
    assert len(heard.segments) >= 3


def test_a_language_is_heard_where_none_is_given(parts: Any) -> None:
    listener, _ = parts
    clip = np.random.default_rng(4).normal(size=8_000).astype(np.float32) / 9
    found = asyncio.run(listener.hear(clip))
    assert found.language in ("english", "german")
    assert found == asyncio.run(listener.hear(clip, found.language))
    with pytest.raises(ConfigError, match="does not have it"):
        asyncio.run(listener.hear(clip, "french"))
