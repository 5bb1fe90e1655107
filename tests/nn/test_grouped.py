"""Tokens by their own expert's matrix, in blocks: the textbook's products and gradients, at a cost without experts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import SingleDeviceSharding

from helpers import params_of, tiny_config
from lmkit.compiler.topology import hardware_devices
from lmkit.config.entry import compose
from lmkit.nn import forms
from lmkit.nn.grouped import blocked_product
from lmkit.nn.moe import MoE

Product = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def in_blocks(x_SI: jax.Array, w_eIO: jax.Array, rows_e: jax.Array) -> jax.Array:
    return forms.grouped_product(x_SI, w_eIO, rows_e, 32)


@pytest.mark.parametrize("blocks", [[2, 0, 1, 0], [0, 0, 0, 4], [0, 0, 0, 0], [1, 1, 1, 1]], ids=str)
def test_equals_each_expert_by_itself(blocks: list[int]) -> None:
    """With experts that nobody chose, and rows behind the last block."""
    x_SI, w_eIO = jax.random.normal(jax.random.key(0), (20, 6)), jax.random.normal(jax.random.key(1), (4, 6, 5))
    probe_SO = jax.random.normal(jax.random.key(2), (20, 5))
    of_S = np.repeat(range(4), np.array(blocks) * 4)

    def textbook(x_SI: jax.Array, w_eIO: jax.Array) -> jax.Array:
        y_nO = jnp.einsum("nI,nIO->nO", x_SI[: len(of_S)], w_eIO[of_S])
        return jnp.pad(y_nO, ((0, 20 - len(of_S)), (0, 0)))

    def ours(x_SI: jax.Array, w_eIO: jax.Array) -> jax.Array:
        return blocked_product(x_SI, w_eIO, jnp.array(blocks), 4)

    for function in (textbook, ours):
        assert function(x_SI, w_eIO).shape == (20, 5)
    both = [
        jax.value_and_grad(lambda x, w, f=function: jnp.sum(f(x, w) * probe_SO), (0, 1))(x_SI, w_eIO)
        for function in (textbook, ours)
    ]
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def temporaries(
    product: Product, experts: int, dtype: type = jnp.bfloat16, sharding: SingleDeviceSharding | None = None
) -> int:
    """Bytes that the compiler needs beside operands and results of a product, forward and backward."""
    shapes = [((2048, 256), dtype), ((experts, 256, 512), dtype), ((experts,), jnp.int32)]
    args = [jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes]

    def loss(x, w, rows_e):
        return jnp.sum(jnp.square(product(x, w, rows_e).astype(jnp.float32)))

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_more_experts_need_no_more_memory() -> None:
    """The same tokens with sixteen times the experts; a product of all with all takes the tokens so many times."""
    few, many = (temporaries(in_blocks, experts, jnp.float32) for experts in (4, 64))
    matrices = 64 * 256 * 512 * 4
    assert many < few + 1.1 * matrices, "their gradient may lie there once"


def test_the_kernel_of_a_tpu_takes_rows_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixture's result is the same in both forms."""
    graph, params = params_of(MoE(tiny_config(num_experts=4), residual_std=0.3, rngs=nnx.Rngs(0)))
    x_BTD = jax.random.normal(jax.random.key(0), (2, 9, 64))
    blocks = nnx.merge(graph, nnx.State(params))(x_BTD)
    monkeypatch.setattr(forms, "platform", lambda: "tpu")
    assert forms.expert_block(36, 4) == 1
    np.testing.assert_allclose(nnx.merge(graph, nnx.State(params))(x_BTD), blocks, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("hardware", "package", "extra", "product"), [
    ("v5e_8", "libtpu", "tpu", lax.ragged_dot),
    ("h100_8", "jax_plugins.xla_cuda13", "gpu-aot", in_blocks),
])  # fmt: skip
def test_more_experts_need_no_more_memory_on_accelerators(
    hardware: str, package: str, extra: str, product: Product
) -> None:
    """Each in its own form, by its own compiler."""
    pytest.importorskip(package, reason=f"LOUD: {package} is not installed (pip install 'lmkit[{extra}]')")
    devices = hardware_devices(compose(["+experiment=gpt_tiny", f"hardware={hardware}"]).hardware)
    few, many = (temporaries(product, experts, sharding=SingleDeviceSharding(devices[0])) for experts in (4, 64))
    assert many < few + (8 << 20)
