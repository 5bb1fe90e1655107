"""Decoding with a cache equals the model without one, for everything a decoder can be, on any mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import MESHES, params_of, rotated
from lmkit.config.base import ConfigError
from lmkit.config.entry import compose
from lmkit.config.sections.families import EncDecConfig, GPTConfig
from lmkit.config.sections.model import Activation, Norm, NormOrder, Position, RopeScaling
from lmkit.models import build_model
from lmkit.nn.attention import Attention
from lmkit.nn.cache import slot_index
from lmkit.nn.param import param_specs
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of

TEXT: dict[str, Any] = {"vocab_size": 64, "num_layers": 2, "num_heads": 4, "embed_dim": 32, "init_std": 0.3}
MIXED = TEXT | {"num_layers": 4, "sliding_window": 5, "global_every": 3}
DECODERS: dict[str, Any] = {
    "gpt": GPTConfig(**TEXT),
    "unrolled": GPTConfig(**TEXT, scan_layers=False),
    "learned": GPTConfig(**TEXT, position=Position.learned, norm=Norm.layernorm, bias=True, max_seq_len=32),
    "sinusoidal": GPTConfig(**TEXT, position=Position.sinusoidal),
    "no-positions": GPTConfig(**TEXT, position=Position.none),
    "grouped": GPTConfig(**TEXT, gated=True, num_kv_heads=2, rope_scaling=RopeScaling.llama3, rope_factor=8.0,
                         rope_original_len=8),
    "one-key-head": GPTConfig(**TEXT, num_kv_heads=1, qk_norm=True, head_dim=10),
    "softcaps": GPTConfig(**TEXT, attention_softcap=2.0, logit_softcap=3.0, norm_order=NormOrder.both,
                          attention_scale=0.7, embed_scale=True),
    "window": GPTConfig(**TEXT, sliding_window=5),
    "window-grouped": GPTConfig(**TEXT, sliding_window=3, num_kv_heads=2, position=Position.learned),
    "mixed": GPTConfig(**MIXED, rope_local_theta=100.0, qk_norm=True, norm_offset=1.0),
    "mixed-unrolled": GPTConfig(**MIXED, rope_local_theta=100.0, scan_layers=False, num_kv_heads=2),
    "moe": GPTConfig(**TEXT, gated=True, num_experts=4),
    "transformer": EncDecConfig(**TEXT, embed_scale=True, head_bias=True),
    "bart": EncDecConfig(**TEXT, position=Position.learned, position_offset=2, embed_norm=True, num_decoder_layers=3),
    "t5": EncDecConfig(**TEXT, position=Position.relative, norm=Norm.rmsnorm, norm_order=NormOrder.pre, bias=False,
                       gated=True, tie_embeddings=False, attention_scale=1.0, activation=Activation.gelu_tanh,
                       head_scale=0.3, relative_buckets=8, relative_max_distance=10),
    "whisper": EncDecConfig(**TEXT, position=Position.learned, norm_order=NormOrder.pre, num_mels=20, key_bias=False),
}  # fmt: skip
TOTAL, ROWS = 17, 8
LENGTHS = np.array([3, 11, 1, 7, 4, 9, 2, 6], np.int32)  # of the prompts: shorter and longer than the windows


def tokens_of(rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 64, (rows, TOTAL), dtype=np.int32)


def source_of(config: EncDecConfig) -> tuple[np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(1)
    if config.num_mels:
        return rng.normal(size=(ROWS, 12, config.num_mels)).astype(np.float32), None
    real = np.arange(9) < np.array([9, 4, 7, 9, 2, 5, 9, 8])[:, None]
    return rng.integers(0, 64, (ROWS, 9), dtype=np.int32), real.astype(np.int32)


def uncached(model: Any, tokens_BT: Any, segment_ids_BT: Any = None, positions_BT: Any = None) -> np.ndarray:
    if isinstance(model.config, GPTConfig):
        return np.asarray(model(jnp.asarray(tokens_BT), segment_ids_BT, positions_BT))
    source, ids = source_of(model.config)
    return np.asarray(model(jnp.asarray(source), jnp.asarray(tokens_BT), ids, segment_ids_BT))


def make_step(graph: Any, *, first: bool) -> Any:
    @jax.jit
    def step(params, tokens_BT, num_new_B, cache, **more):
        model: Any = nnx.merge(graph, nnx.State(params))
        if first:
            cache = model.init_cache(tokens_BT.shape[0], TOTAL)
            if "source" in more:
                more["memory"] = model.encode(more.pop("source"), more.pop("source_ids"))
            else:
                more["empty"] = True
        hidden_BTD, cache = model.extend(tokens_BT, num_new_B, cache, **more)
        return model.logits(hidden_BTD), cache

    return step


def cached(graph: Any, params: Any, config: Any, tokens: np.ndarray, chunk: int, put=jnp.asarray, **prompt) -> dict:
    """Logits by (row, place): the prompts first, each of its own length, then `chunk` tokens at a time."""
    if isinstance(config, EncDecConfig):
        source, ids = source_of(config)
        prompt |= {"source": put(source), "source_ids": None if ids is None else put(ids)}
    prefill, step = make_step(graph, first=True), make_step(graph, first=False)
    width = LENGTHS.max()
    new_BT, num_B, cache, seen, more = tokens[:, :width], LENGTHS, None, {}, prompt
    done = np.zeros(ROWS, np.int32)
    while num_B.any():
        logits, cache = (step if cache else prefill)(params, put(new_BT), put(num_B), cache, **more)
        logits, more = np.asarray(logits), {}
        seen |= {(row, done[row] + t): logits[row, t] for row in range(ROWS) for t in range(num_B[row])}
        done = done + num_B
        num_B = np.minimum(chunk, TOTAL - done).astype(np.int32)
        if chunk > 1:  # rows advance by different numbers
            num_B = np.minimum(num_B, 1 + (np.arange(ROWS) + done) % chunk).astype(np.int32)
        places = np.minimum(done[:, None] + np.arange(chunk), TOTAL - 1)
        new_BT = np.where(np.arange(chunk) < num_B[:, None], np.take_along_axis(tokens, places, 1), 63)
    assert len(seen) == ROWS * TOTAL
    return seen


def check(seen: dict, expected: np.ndarray) -> None:
    got = np.stack([[seen[row, place] for place in range(TOTAL)] for row in range(ROWS)])
    # float32: the same sums in another order
    np.testing.assert_allclose(got, expected, atol=2e-4 * max(1.0, np.abs(expected).max()), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "chunk"),
    rotated(
        [*((name, 1) for name in DECODERS), *((name, 4) for name in ("window", "mixed-unrolled", "t5", "whisper"))],
        ("gpt", 1),
        ("grouped", 1),
        ("mixed", 1),
        ("moe", 1),
        ("bart", 1),
        ("window", 4),
        ("t5", 4),
        ("whisper", 4),
    ),
)
def test_cached_equals_uncached(name: str, chunk: int) -> None:
    config = DECODERS[name]
    graph, params = params_of(build_model(config, nnx.Rngs(0)))
    check(cached(graph, params, config, tokens_of(), chunk), uncached(nnx.merge(graph, nnx.State(params)), tokens_of()))


@pytest.mark.parametrize(("name", "mesh_name"), rotated(
    [*((name, "data2_fsdp2_tensor2") for name in ("grouped", "window", "mixed", "moe", "t5", "bart")),
     ("mixed", "data8"), ("t5", "fsdp8")],
    ("grouped", "data2_fsdp2_tensor2"), ("moe", "data2_fsdp2_tensor2"), ("t5", "fsdp8"),
))  # fmt: skip
def test_cached_equals_uncached_on_eight_devices(name: str, mesh_name: str) -> None:
    """Rows, heads and parameters split: the cache, too."""
    config = DECODERS[name]
    graph, params = params_of(build_model(config, nnx.Rngs(0)))
    expected = uncached(nnx.merge(graph, nnx.State(params)), tokens_of())
    mesh = build_mesh(compose(["run.name=x", "model.num_heads=4", *MESHES[mesh_name]]).mesh)
    specs = param_specs(nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[1])
    placed = jax.tree.map(lambda v, s: jax.device_put(v, sharding_of(s.dims, mesh, s.shape)), params, specs)
    rows = lambda x: jax.device_put(x, sharding_of(("batch", *[None] * (np.ndim(x) - 1)), mesh))  # noqa: E731
    with jax.set_mesh(mesh):
        check(cached(graph, placed, config, tokens_of(), 1, put=rows), expected)
        shapes = jax.eval_shape(make_step(graph, first=True), placed, *(rows(x) for x in (tokens_of(), LENGTHS)), None,
                                **({} if isinstance(config, GPTConfig) else memory_of(config, rows)))[1]  # fmt: skip
    split = {axis for entry in shapes.k_LBSKH.sharding.spec if entry for axis in np.atleast_1d(entry)}
    assert split == {axis for axis in ("data", "fsdp", "tensor") if mesh.shape[axis] > 1}


def memory_of(config: EncDecConfig, put) -> dict[str, Any]:
    source, ids = source_of(config)
    return {"source": put(source), "source_ids": None if ids is None else put(ids)}


@pytest.mark.parametrize("name", ["gpt", "learned", "window", "mixed"])
def test_a_packed_prompt_goes_on_in_its_last_document(name: str) -> None:
    """Segments and positions of the prompt are kept: what follows sees its own document only."""
    config = DECODERS[name]
    graph, params = params_of(build_model(config, nnx.Rngs(0)))
    tokens = tokens_of()
    begin = np.minimum(LENGTHS - 1, 2)[:, None]  # of the second document
    segments = 4 + (np.arange(TOTAL) >= begin)
    positions = np.where(segments == 4, np.arange(TOTAL), np.arange(TOTAL) - begin)
    expected = uncached(nnx.merge(graph, nnx.State(params)), tokens, jnp.asarray(segments), jnp.asarray(positions))
    width = LENGTHS.max()
    prompt = {"segment_ids_BT": segments[:, :width], "positions_BT": positions[:, :width]}
    check(cached(graph, params, config, tokens, 1, **prompt), expected)


@pytest.mark.parametrize("name", ["transformer", "t5"])
def test_a_packed_source_and_target(name: str) -> None:
    """Two pairs in one row: the second target sees the second source, and begins at position 0."""
    config = DECODERS[name]
    graph, params = params_of(build_model(config, nnx.Rngs(0)))
    segments = 1 + (np.arange(TOTAL) >= np.minimum(LENGTHS - 1, 2)[:, None])
    source = source_of(config)[0]
    pairs = np.repeat(1 + (np.arange(9) >= 4)[None], ROWS, axis=0).astype(np.int32)
    model = nnx.merge(graph, nnx.State(params))
    expected = np.asarray(model(jnp.asarray(source), jnp.asarray(tokens_of()), pairs, segments))
    prompt = {"segment_ids_BT": segments[:, : LENGTHS.max()]}
    step = make_step(graph, first=True)
    logits, cache = step(
        params, tokens_of()[:, : LENGTHS.max()], LENGTHS, None, source=source, source_ids=pairs, **prompt
    )
    for row in range(ROWS):
        n = LENGTHS[row]
        np.testing.assert_allclose(logits[row, :n], expected[row, :n], atol=1e-3)
    new = np.take_along_axis(tokens_of(), LENGTHS[:, None], 1)
    logits, _ = make_step(graph, first=False)(params, new, np.ones(ROWS, np.int32), cache)
    np.testing.assert_allclose(logits[:, 0], expected[np.arange(ROWS), LENGTHS], atol=1e-3)


def test_slots_of_a_ring() -> None:
    """Three slots: a row of none, of two, of seven tokens."""
    got = slot_index(jnp.array([0, 2, 7]), 3)
    assert got[1].tolist()[:2] == [0, 1]
    assert got[1, 2] < 0
    assert (got[0] < 0).all()
    assert got[2].tolist() == [6, 4, 5]


def test_a_window_needs_no_more_slots() -> None:
    def slots(**changes: Any) -> int:
        model = nnx.eval_shape(lambda: build_model(GPTConfig(**(TEXT | changes)), nnx.Rngs(0)))
        return jax.eval_shape(lambda: model.init_cache(2, 100)).k_LBSKH.shape[2]

    assert [slots(), slots(sliding_window=7), slots(sliding_window=700)] == [100, 7, 100]
    assert slots(sliding_window=7, global_every=2) == 100


def test_a_step_copies_no_cache_and_costs_the_same_everywhere() -> None:
    """The compiled step writes where the old cache was, and where a row stands is data, not shape."""
    config = GPTConfig(**TEXT)
    graph, params = params_of(build_model(config, nnx.Rngs(0)))

    def step(params, token_B1, cache):
        model: Any = nnx.merge(graph, nnx.State(params))
        hidden, cache = model.extend(token_B1, jnp.ones(len(token_B1), jnp.int32), cache)
        return model.logits(hidden), cache

    cache = nnx.merge(graph, nnx.State(params)).init_cache(2, 4096)
    jitted = jax.jit(step, donate_argnums=2)
    compiled = jitted.lower(params, np.zeros((2, 1), np.int32), cache).compile()
    memory = compiled.memory_analysis()
    size = cache.k_LBSKH.nbytes + cache.v_LBSKH.nbytes
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size  # one layer's share at a time, not all
    for _ in range(3):
        _, cache = jitted(params, np.zeros((2, 1), np.int32), cache)
    assert jitted._cache_size() == 1
    assert cache.length_B.tolist() == [3, 3]


class Parallel(nnx.Module):
    """A block of a user's own: attention and MLP side by side."""

    def __init__(self, config: GPTConfig, *, causal: bool, rngs: nnx.Rngs):
        self.attention = Attention(config, causal=causal, residual_std=0.1, rngs=rngs)

    def __call__(self, x_BTD, places, windowed, key):
        return x_BTD + self.attention(x_BTD, places, windowed) + jnp.tanh(x_BTD)


class Mean(Parallel):
    """One that looks at other tokens its own way."""

    def __call__(self, x_BTD, places, windowed, key):
        return x_BTD + jnp.mean(x_BTD, axis=1, keepdims=True)


def test_a_block_of_your_own_decodes() -> None:
    config = GPTConfig(**TEXT, block=f"{__name__}:Parallel")
    graph, params = params_of(build_model(config, nnx.Rngs(0)))
    check(cached(graph, params, config, tokens_of(), 1), uncached(nnx.merge(graph, nnx.State(params)), tokens_of()))
    model = build_model(GPTConfig(**TEXT, block=f"{__name__}:Mean"), nnx.Rngs(0))
    with pytest.raises(ConfigError, match="Mean cannot decode"):
        model.extend(jnp.zeros((1, 2), int), jnp.array([2]), model.init_cache(1, 4), empty=True)
