"""Chunked cross-entropy equals the plain one, on any mesh, without the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import MESHES
from lmkit.config.entry import compose
from lmkit.objectives.cross_entropy import cross_entropy
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of

B, T, D, V = 8, 24, 16, 40
KEYS = jax.random.split(jax.random.key(0), 4)
HIDDEN, HEAD = jax.random.normal(KEYS[0], (B, T, D)), jax.random.normal(KEYS[1], (V, D))
TARGETS = jax.random.randint(KEYS[2], (B, T), 0, V)
WEIGHTS = jax.random.uniform(KEYS[3], (B, T)) * (jnp.arange(B)[:, None] % 3 > 0)  # uneven over shards
OPTIONS = [
    {},
    {"z_loss": 0.1},
    {"label_smoothing": 0.2},
    {"softcap": 2.0},
    {"z_loss": 0.1, "label_smoothing": 0.2, "softcap": 2.0},
]


def plain(hidden, head, *, z_loss=0.0, label_smoothing=0.0, softcap=0.0):
    logits = hidden @ head.T
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    log_probs = jax.nn.log_softmax(logits)
    target = (1 - label_smoothing) * jax.nn.one_hot(TARGETS, V) + label_smoothing / V
    loss = -jnp.sum(target * log_probs, axis=-1) + z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return jnp.sum(loss * WEIGHTS)


def test_of_bfloat16_operands_all_else_is_float32() -> None:
    """Logits that were rounded, too, would change the loss by a thousandth."""
    hidden, head = HIDDEN.astype(jnp.bfloat16), HEAD.astype(jnp.bfloat16)
    got = jax.jit(lambda h, w: cross_entropy(h, w, TARGETS, WEIGHTS)[0])(hidden, HEAD)
    expected = plain(hidden.astype(jnp.float32), head.astype(jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("chunk", [0, 7, 64, 1000])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_plain(options: dict, chunk: int) -> None:
    expected = jax.value_and_grad(plain, argnums=(0, 1))(HIDDEN, HEAD, **options)
    chunked = lambda h, w: cross_entropy(h, w, TARGETS, WEIGHTS, chunk_tokens=chunk, **options)[0]  # noqa: E731
    got = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(HIDDEN, HEAD)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_nll_and_accuracy_are_plain() -> None:
    loss, nll, correct = cross_entropy(HIDDEN, HEAD, TARGETS, WEIGHTS, chunk_tokens=32, z_loss=1.0, label_smoothing=0.3)
    np.testing.assert_allclose(nll, plain(HIDDEN, HEAD), rtol=1e-5)
    hits = jnp.argmax(HIDDEN @ HEAD.T, axis=-1) == TARGETS
    np.testing.assert_allclose(correct, jnp.sum(hits * WEIGHTS), rtol=1e-6)
    assert float(loss) > float(nll)


@pytest.mark.parametrize("mesh_name", MESHES)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=str)
def test_equals_plain_on_a_mesh(mesh_name: str, options: dict) -> None:
    expected = jax.value_and_grad(plain, argnums=(0, 1))(HIDDEN, HEAD, **options)
    mesh = build_mesh(compose(["run.name=x", "model.num_heads=4", *MESHES[mesh_name]]).mesh)
    put = lambda x, dims: jax.device_put(x, sharding_of(dims, mesh, x.shape))  # noqa: E731
    hidden, head = put(HIDDEN, ("batch", "seq_norm", "width")), put(HEAD, ("vocab", "embed"))
    targets, weights = put(TARGETS, ("batch", "seq")), put(WEIGHTS, ("batch", "seq"))
    with jax.set_mesh(mesh):
        chunked = lambda h, w: cross_entropy(h, w, targets, weights, chunk_tokens=16, **options)[0]  # noqa: E731
        got = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(hidden, head)
        accuracy = jax.jit(cross_entropy)(hidden, head, targets, weights)[2]
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5)
    np.testing.assert_allclose(accuracy, cross_entropy(HIDDEN, HEAD, TARGETS, WEIGHTS)[2], rtol=1e-6)


def test_logits_are_never_whole() -> None:
    rows, vocab, width = 4096, 8192, 32
    shapes = (
        jax.ShapeDtypeStruct((4, rows // 4, width), jnp.float32), jax.ShapeDtypeStruct((vocab, width), jnp.float32),
        jax.ShapeDtypeStruct((4, rows // 4), jnp.int32), jax.ShapeDtypeStruct((4, rows // 4), jnp.float32),
    )  # fmt: skip

    def temporaries(chunk: int) -> int:
        step = jax.jit(jax.grad(lambda *a: cross_entropy(*a, chunk_tokens=chunk)[0], argnums=(0, 1)))
        return step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    whole = rows * vocab * 4
    assert temporaries(256) < 0.4 * whole < temporaries(0)


def test_bfloat16_gradients_have_the_dtypes_of_their_inputs() -> None:
    step = jax.grad(lambda h, w: cross_entropy(h, w, TARGETS, WEIGHTS)[0], argnums=(0, 1))
    d_hidden, d_head = step(HIDDEN.astype(jnp.bfloat16), HEAD)
    assert d_hidden.dtype == jnp.bfloat16
    assert d_head.dtype == jnp.float32
    expected = jax.grad(plain, argnums=1)(HIDDEN, HEAD)
    np.testing.assert_allclose(d_head, expected, atol=0.05 * float(jnp.abs(expected).max()))
