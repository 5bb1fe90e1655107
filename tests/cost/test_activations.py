"""What a layer keeps, by formula and by jax: the leaves of the backward pass of the real blocks, traced and not run."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lmkit.config.sections.families import GPTConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.model import Activation, DType, LinearDType, Norm, NormOrder, Position, Remat
from lmkit.cost.activations import Share, kept_bytes, offloaded_bytes
from lmkit.nn.attention import make_layer_inputs
from lmkit.nn.block import Block
from lmkit.nn.stack import POLICIES
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import residual_dims, sharding_of

ROWS, SEQ = 14, 128  # 7 is in no size of a weight: what it divides is of the tokens
FILLED = 31  # blocks of 128 rows that the tokens' choices of experts may take
SIZES = {"vocab_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4, "head_dim": 24, "embed_dim": 64,
         "mlp_dim": 160, "dtype": DType.bfloat16}  # fmt: skip
LLAMA, GPT2 = {"gated": True}, {"norm": Norm.layernorm, "bias": True, "position": Position.learned}


def of_tokens(leaf: jax.ShapeDtypeStruct) -> bool:
    return leaf.size % 7 == 0 or leaf.size % (FILLED * 128) == 0


def traced_bytes(config: GPTConfig, mesh: jax.sharding.Mesh | None = None) -> float:
    """Bytes a device of all arrays of tokens that the backward pass of a block is handed."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Block(config, causal=True, rngs=nnx.Rngs(0))))
    params = nnx.to_pure_dict(state)

    def block(params, x_BTD):
        places = make_layer_inputs(config, jnp.arange(SEQ)[None], None)
        return nnx.merge(graph, nnx.State(params))(x_BTD, places, False, None)

    if config.remat is not Remat.none:
        block = jax.checkpoint(block, policy=POLICIES[config.remat])
    x_BTD = jax.ShapeDtypeStruct((ROWS, SEQ, config.embed_dim), jnp.bfloat16)
    if mesh is None:
        leaves = jax.eval_shape(lambda p, x: jax.vjp(block, p, x)[1], params, x_BTD)
        return sum(leaf.dtype.itemsize * leaf.size for leaf in jax.tree.leaves(leaves) if of_tokens(leaf))
    with jax.set_mesh(mesh):
        sharding = sharding_of(residual_dims(SEQ), mesh)
        x_BTD = jax.ShapeDtypeStruct(x_BTD.shape, x_BTD.dtype, sharding=sharding)
        leaves = jax.eval_shape(lambda p, x: jax.vjp(block, p, x)[1], params, x_BTD)
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(leaves) if of_tokens(leaf)
    )  # fmt: skip


def assert_equal(formula: float, config: GPTConfig) -> None:
    """To 1 %: masks, the router's numbers, sums of norms, a few bytes a token."""
    assert formula == pytest.approx(traced_bytes(config), rel=0.01)


@pytest.mark.parametrize("remat", Remat)
@pytest.mark.parametrize(
    "form",
    [
        LLAMA | {"num_kv_heads": 2, "qk_norm": True},
        GPT2 | {"activation": Activation.gelu_tanh},
        LLAMA | {"norm_order": NormOrder.both, "activation": Activation.gelu},
        LLAMA | {"num_experts": 4, "num_kv_heads": 2},
        LLAMA | {"linear_dtype": LinearDType.float8, "num_kv_heads": 2},
        GPT2 | {"linear_dtype": LinearDType.float8},
    ],
    ids=["llama", "gpt2", "gemma", "mixtral", "llama in float8", "gpt2 in float8"],
)
def test_what_a_layer_keeps(form: dict, remat: Remat) -> None:
    config = GPTConfig(**{**SIZES, **form, "remat": remat})
    share = Share(ROWS * SEQ, tensor=1, stream=1, itemsize=2, flat=True)
    assert_equal(kept_bytes(config, share) + offloaded_bytes(config, share), config)


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("gated", [False, True])
def test_what_each_activation_keeps(activation: Activation, gated: bool) -> None:
    config = GPTConfig(**SIZES, activation=activation, gated=gated)
    share = Share(ROWS * SEQ, tensor=1, stream=1, itemsize=2, flat=True)
    assert_equal(kept_bytes(config, share), config)


@pytest.mark.parametrize("remat", [Remat.none, Remat.dots, Remat.names, Remat.full])
def test_what_a_device_of_a_mesh_keeps(remat: Remat) -> None:
    config = GPTConfig(**SIZES, **LLAMA, remat=remat)
    mesh = build_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    share = Share(ROWS * SEQ / 2, tensor=4, stream=4, itemsize=2, flat=True)
    assert kept_bytes(config, share) == pytest.approx(traced_bytes(config, mesh), rel=0.01)
