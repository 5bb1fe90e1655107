"""Blocks: norms, rotary positions, MLPs, the stack, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import params_of, random_batch, tiny_config, tiny_model
from lmkit.config.sections.families import BERTConfig, GPTConfig
from lmkit.config.sections.model import Activation, Norm, NormOrder, Position, Remat, ResidualInit
from lmkit.config.sections.optim import ParamKind
from lmkit.nn.attention import Attention, LayerInputs, make_layer_inputs
from lmkit.nn.block import Block, CrossBlock, ResidualBranch
from lmkit.nn.dropout import dropout
from lmkit.nn.embed import StreamInput, vocabulary_logits
from lmkit.nn.linear import Linear
from lmkit.nn.mlp import ACTIVATIONS, MLP, activate
from lmkit.nn.norm import LayerNorm, RMSNorm
from lmkit.nn.param import param, param_specs
from lmkit.nn.position import apply_rope, rope_table
from lmkit.nn.stack import Stack

TOKENS = jnp.asarray(random_batch(0, rows=2, seq=32)["inputs"])


@pytest.mark.parametrize("kind", list(Activation))
def test_an_activation_is_rounded_once_and_keeps_its_input_alone(kind: Activation) -> None:
    x = jnp.linspace(-4, 4, 1001)
    y, back = jax.vjp(lambda x: activate(kind, x), x.astype(jnp.bfloat16))
    exact, exact_back = jax.vjp(ACTIVATIONS[kind], x.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    ones = jnp.ones(1001)
    np.testing.assert_array_equal(back(ones.astype(jnp.bfloat16))[0], exact_back(ones)[0].astype(jnp.bfloat16))
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(back)] == [((1001,), jnp.bfloat16)]


def test_layer_norm_has_mean_0_and_variance_1() -> None:
    x = jax.random.normal(jax.random.key(0), (3, 64)) * 5 + 2
    y = LayerNorm(64, eps=1e-6, bias=True)(x)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(-1), 1, rtol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_starts_at_unit_scale(offset: float) -> None:
    norm = RMSNorm(64, eps=1e-6, offset=offset)
    x = jax.random.normal(jax.random.key(0), (3, 64), jnp.bfloat16) * 5
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(jnp.square(norm(x).astype(jnp.float32)).mean(-1), 1, rtol=2e-2)
    norm.scale[...] = norm.scale[...] + 1.0
    np.testing.assert_allclose(jnp.square(norm(x).astype(jnp.float32)).mean(-1), 4, rtol=2e-2)


def test_norms_equal_their_formulas() -> None:
    """With an epsilon as large as the input, which stands inside the root."""
    x = np.array([[0.5, -1.0, 1.5, 0.0], [0.1, 0.1, 0.2, -0.4]], np.float32)
    scale, bias = np.array([1.0, 2.0, -1.0, 0.5], np.float32), np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    rms, layer = RMSNorm(4, eps=0.5, offset=1.0), LayerNorm(4, eps=0.5, bias=True)
    rms.scale[...] = layer.scale[...] = jnp.asarray(scale)
    assert layer.bias is not None
    layer.bias[...] = jnp.asarray(bias)
    expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 0.5) * (1 + scale)
    np.testing.assert_allclose(rms(x), expected, rtol=1e-5)  # float32
    centred = x - x.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt(x.var(axis=-1, keepdims=True) + 0.5) * scale + bias
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("order", list(NormOrder))
def test_a_join_adds_what_its_sub_layer_gives(order: NormOrder) -> None:
    join = ResidualBranch(
        BERTConfig(vocab_size=9, embed_dim=4, num_heads=1, norm=Norm.rmsnorm, norm_order=order, norm_eps=0.1)
    )
    x = np.array([[[0.5, -1.0, 1.5, 0.0]]], np.float32)

    def norm(x: np.ndarray, scale: float) -> np.ndarray:
        return scale * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 0.1)

    assert join.norm is not None
    join.norm.scale[...] = jnp.full(4, 2.0)
    if join.post_norm is not None:
        join.post_norm.scale[...] = jnp.full(4, 3.0)
    expected = {
        NormOrder.pre: x + np.tanh(norm(x, 2)),
        NormOrder.post: norm(x + np.tanh(x), 2),
        NormOrder.both: x + norm(np.tanh(norm(x, 2)), 3),
    }[order]
    np.testing.assert_allclose(join(jnp.asarray(x), jnp.tanh, "mlp", None), expected, rtol=1e-5)  # float32


@pytest.mark.parametrize("windowed", [False, True])
def test_attention_equals_its_formula(windowed: bool) -> None:
    """Causal, with two query heads a key head, scales of their own for the norms of queries and keys, and rotation.

    Rotation is written as complex numbers: pair j at position t is multiplied by exp(i t theta^(-2j / H)).
    """
    config = tiny_config(
        embed_dim=8, num_kv_heads=2, head_dim=4, qk_norm=True, init_std=0.5, attention_scale=0.3, attention_softcap=1.5,
        sliding_window=3, global_every=2, rope_theta=100.0, rope_local_theta=25.0,
    )  # fmt: skip
    layer = Attention(config, causal=True, residual_std=0.5, rngs=nnx.Rngs(0))
    assert layer.q_norm is not None
    assert layer.k_norm is not None
    scales = {"q": np.array([1.0, 2.0, 0.5, -1.5]), "k": np.array([0.5, -1.0, 3.0, 1.0])}
    layer.q_norm.scale[...], layer.k_norm.scale[...] = (jnp.asarray(s, jnp.float32) for s in scales.values())
    x = np.random.default_rng(0).standard_normal((2, 5, 8))
    run = jax.jit(lambda x: layer(x, make_layer_inputs(config, jnp.arange(5)[None], None), windowed))
    got = run(jnp.asarray(x, jnp.float32))

    def project(name: str) -> np.ndarray:
        y = np.einsum("btd,dnh->btnh", x, np.asarray(getattr(layer, name).kernel[...], np.float64))
        if name == "v":
            return y
        y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + config.norm_eps) * scales[name]
        turn = np.exp(1j * np.arange(5)[:, None, None] * np.array([1.0, 0.2 if windowed else 0.1]))
        pairs = (y[..., :2] + 1j * y[..., 2:]) * turn
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    q, k, v = project("q"), *(np.repeat(project(name), 2, axis=2) for name in "kv")
    seen = np.tri(5, dtype=bool) & ~np.tri(5, k=-3 if windowed else -5, dtype=bool)
    scores = np.where(seen, 1.5 * np.tanh(0.3 * np.einsum("btnh,bsnh->bnts", q, k) / 1.5), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = np.einsum("bnts,bsnh->btnh", weights / weights.sum(axis=-1, keepdims=True), v)
    expected = np.einsum("btnh,nhd->btd", mixed, np.asarray(layer.out.kernel[...], np.float64))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)  # float32 against float64


def test_the_ends_of_a_model_equal_their_formulas() -> None:
    """Vectors are scaled before positions and kinds are added; logits are capped after their bias is."""
    config = BERTConfig(vocab_size=9, embed_dim=4, num_heads=1, init_std=0.5)
    layer = StreamInput(config, length=6, offset=2, types=2, scaled=True, rngs=nnx.Rngs(0))
    assert layer.position is not None
    assert layer.type is not None
    position, kind = np.asarray(layer.position.table[...]), np.asarray(layer.type.table[...])
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    places, kinds = np.array([[0, 1, 2], [3, 0, 5]]), np.array([[0, 0, 1], [1, 0, 1]])
    got = layer(jnp.asarray(x), jnp.asarray(places), jnp.asarray(kinds))
    np.testing.assert_allclose(got, 2.0 * x + position[places + 2] + kind[kinds], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer(jnp.asarray(x)), 2.0 * x + position[2:5] + kind[0], rtol=1e-5, atol=1e-6)
    head, bias = position, np.arange(8, dtype=np.float32)
    logits = vocabulary_logits(jnp.asarray(x), jnp.asarray(head), jnp.asarray(bias), softcap=3.0)
    np.testing.assert_allclose(logits, 3.0 * np.tanh((x @ head.T + bias) / 3.0), rtol=1e-5, atol=1e-6)  # float32


def test_rope_depends_on_distance_only() -> None:
    """<R_m q, R_n k> = <R_{m+s} q, R_{n+s} k> (Su et al. 2021, equation 16)."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 32))

    def score(m: int, n: int) -> float:
        at = lambda x, place: apply_rope(x, rope_table(jnp.array([[place]]), tiny_config(head_dim=32)))  # noqa: E731
        return float(jnp.sum(at(q, m) * at(k, n)))

    assert score(7, 3) == pytest.approx(score(107, 103), rel=1e-3)
    assert score(7, 3) != pytest.approx(score(7, 4), rel=1e-3)


def test_rope_keeps_norms_and_position_zero() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 16))
    y = apply_rope(x, rope_table(jnp.arange(4)[None], tiny_config(head_dim=16, rope_theta=100.0)))
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(y[:, 0], x[:, 0])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", list(Activation))
def test_mlp_equals_its_formula(activation: Activation, gated: bool) -> None:
    config = tiny_config(
        embed_dim=8, mlp_dim=16, num_heads=1, activation=activation, gated=gated, bias=True, init_std=0.3
    )
    mlp = MLP(config, residual_std=0.3, rngs=nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 3, 8)))
    formulas = {
        Activation.gelu: lambda z: jax.scipy.stats.norm.cdf(z) * z,
        Activation.gelu_tanh: lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
        Activation.silu: lambda z: z / (1 + np.exp(-z)),
        Activation.relu: lambda z: np.maximum(z, 0),
        Activation.quick_gelu: lambda z: z / (1 + np.exp(-1.702 * z)),
        Activation.relu2: lambda z: np.maximum(z, 0) ** 2,
    }
    up = x @ mlp.up.kernel[...]
    hidden = formulas[activation](x @ mlp.gate.kernel[...]) * up if mlp.gate is not None else formulas[activation](up)
    np.testing.assert_allclose(mlp(x), hidden @ mlp.down.kernel[...], rtol=2e-4, atol=1e-5)


def test_linear_contracts_several_dims() -> None:
    linear = Linear({"heads": 3, "head": 4}, {"embed": 5}, std=0.0, bias=True, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 6, 3, 4))
    expected = np.einsum("btnh,nhd->btd", x, linear.kernel[...])
    np.testing.assert_allclose(linear(x, out=("batch", "seq", "width")), expected, rtol=1e-5, atol=1e-5)
    assert float(linear.kernel[...].std()) == pytest.approx(12**-0.5, rel=0.3)
    assert linear.bias is not None
    assert linear.bias.get_metadata()["logical_axes"] == ("norm",)


@pytest.mark.parametrize("remat", [r for r in Remat if r is not Remat.none])
def test_remat_changes_no_gradient(remat: Remat) -> None:
    def gradient(remat: Remat):
        graph, params = params_of(tiny_model(remat=remat))
        loss = lambda p: jnp.mean(jnp.square(nnx.merge(graph, nnx.State(p))(TOKENS)))  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(jax.tree.leaves(gradient(Remat.none)), jax.tree.leaves(gradient(remat)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_full_remat_uses_less_memory() -> None:
    def temporaries(remat: Remat) -> int:
        graph, params = params_of(tiny_model(remat=remat, num_layers=8))
        loss = lambda p, t: jnp.mean(jnp.square(nnx.merge(graph, nnx.State(p)).hidden(t)))  # noqa: E731
        tokens = jax.ShapeDtypeStruct((16, 128), jnp.int32)
        return jax.jit(jax.grad(loss)).lower(params, tokens).compile().memory_analysis().temp_size_in_bytes

    everything = temporaries(Remat.none)
    assert temporaries(Remat.full) < 0.5 * everything
    assert temporaries(Remat.names) < 0.5 * everything
    assert temporaries(Remat.dots) < 0.9 * everything


def test_scanned_and_unrolled_stacks_share_parameters_and_results() -> None:
    options = {"num_layers": 3, "sliding_window": 8, "global_every": 2}
    scanned, unrolled = tiny_model(**options), tiny_model(scan_layers=False, **options)
    for a, b in zip(jax.tree.leaves(params_of(scanned)[1]), jax.tree.leaves(params_of(unrolled)[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(scanned(TOKENS), unrolled(TOKENS), rtol=1e-5, atol=1e-5)


def test_compile_time_does_not_grow_with_depth() -> None:
    """A scan's program has the same number of instructions for 2 and for 12 layers."""

    def instructions(layers: int) -> int:
        graph, params = params_of(tiny_model(num_layers=layers))
        return jax.jit(lambda p, t: nnx.merge(graph, nnx.State(p))(t)).lower(params, TOKENS).as_text().count("\n")

    assert instructions(12) == instructions(2)


def test_dropout_is_unbiased_keyed_and_off_without_a_key() -> None:
    x = jnp.ones((10, 10, 100))
    dims = ("batch", "seq", "width")
    y = dropout(x, 0.25, jax.random.key(0), dims)
    assert float((y == 0).mean()) == pytest.approx(0.25, abs=0.02)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.03)
    assert not np.array_equal(y, dropout(x, 0.25, jax.random.key(1), dims))
    assert dropout(x, 0.25, None, dims) is x


def test_dropout_differs_by_row_and_place() -> None:
    x, dims, key = np.ones((3, 4, 64), np.float32), ("batch", "seq", "width"), jax.random.key(0)
    run = jax.jit(lambda x, rows: dropout(x, 0.5, key, dims, rows))
    kept_BTD = np.asarray(run(x, jnp.arange(3)))
    assert len({kept_D.tobytes() for kept_D in kept_BTD.reshape(12, 64)}) == 12
    np.testing.assert_array_equal(run(x, jnp.array([2, 0, 1])), kept_BTD[[2, 0, 1]])


class Noisy(nnx.Module):
    """A block that adds its key's draw."""

    def __init__(self):
        self.zero = param(jnp.zeros(1), ("norm",), ParamKind.vector)

    def __call__(self, x_BTD: jax.Array, places: LayerInputs, windowed: jax.Array | bool, key: jax.Array) -> jax.Array:
        return x_BTD + jax.random.uniform(key) + self.zero[...]


@pytest.mark.parametrize("scan", [True, False])
def test_dropout_differs_by_layer(scan: bool) -> None:
    stack = Stack(lambda rngs: Noisy(), tiny_config(num_layers=3, scan_layers=scan), rngs=nnx.Rngs(0))
    key = jax.random.key(0)
    got = stack(jnp.zeros((1, 1, 1)), LayerInputs(), flags=False, key=key)
    draws = [float(jax.random.uniform(jax.random.fold_in(key, layer))) for layer in range(3)]
    assert float(got[0, 0, 0]) == pytest.approx(sum(draws), rel=1e-5)


@pytest.mark.parametrize(("kind", "joins"), [(Block, 2), (CrossBlock, 3)])
def test_dropout_differs_by_sub_layer(kind: type, joins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    monkeypatch.setattr(ResidualBranch, "__call__", lambda self, x, f, name, key, rows=None: keys.append(key) or x)
    block = nnx.eval_shape(lambda: kind(tiny_config(), causal=True, rngs=nnx.Rngs(0)))
    block(jnp.zeros((1, 1, 64)), LayerInputs(), False, jax.random.key(0))
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys) == joins


def test_dropout_of_a_model_follows_its_key() -> None:
    model = tiny_model(dropout=0.5)
    one, two = model(TOKENS, key=jax.random.key(0)), model(TOKENS, key=jax.random.key(1))
    assert not np.allclose(one, two)
    np.testing.assert_array_equal(model(TOKENS), model(TOKENS))


@pytest.mark.parametrize("how", list(ResidualInit))
def test_residual_init(how: ResidualInit) -> None:
    model = tiny_model(residual_init=how, num_layers=8, embed_dim=64)
    std = float(params_of(model)[1]["stack"]["blocks"]["mlp"]["down"]["kernel"].std())
    expected = {ResidualInit.zero: 0.0, ResidualInit.plain: 0.02, ResidualInit.scaled: 0.02 / 4}[how]
    assert std == pytest.approx(expected, rel=0.05)


def test_every_parameter_says_what_it_is() -> None:
    model = nnx.eval_shape(lambda: tiny_model(bias=True, norm=Norm.layernorm, position=Position.learned, gated=True))
    specs = jax.tree.leaves(param_specs(nnx.split(model)[1]))
    assert {spec.kind for spec in specs} == set(ParamKind)
    for spec in specs:
        assert len(spec.dims) == len(spec.shape)
        assert (spec.kind is ParamKind.matrix) == (spec.num_in > 0)


def test_config_of_windows() -> None:
    config = tiny_config(num_layers=6, sliding_window=8, global_every=3)
    assert [config.window_of(layer) for layer in range(6)] == [8, 8, 0, 8, 8, 0]
    assert GPTConfig().window_of(3) == 0
