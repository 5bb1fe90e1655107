"""GPT equals transformers' GPT-2, Llama and Qwen 3 (tiny, random): logits, loss, every gradient.

Needs the extra `parity` (torch on CPU, transformers).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import params_of
from lmkit.config.families import GPTConfig
from lmkit.config.model import Activation, Norm, Position
from lmkit.models import GPT

LOUD = "LOUD: parity with transformers is not tested; pip install 'lmkit[parity]'"
torch = pytest.importorskip("torch", reason=LOUD)
transformers = pytest.importorskip("transformers", reason=LOUD)

VOCAB, WIDTH, LAYERS, HEADS, MLP, SEQ = 97, 48, 3, 4, 80, 33
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, SEQ))
HEAD = WIDTH // HEADS


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=MLP, n_positions=SEQ, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    ours = GPTConfig(
        vocab_size=VOCAB, embed_dim=WIDTH, num_layers=LAYERS, num_heads=HEADS, mlp_dim=MLP, max_seq_len=SEQ, bias=True,
        position=Position.learned, norm=Norm.layernorm, activation=Activation.gelu_tanh, tie_embeddings=True,
    )  # fmt: skip
    h = "transformer.h.{}."
    # lmkit's path -> (their name, axis of q/k/v in a fused one)
    table = {"embed.table": ("transformer.wte.weight", None), "position.table": ("transformer.wpe.weight", None)}
    table |= {
        f"norm.{ours}": (f"transformer.ln_f.{theirs}", None) for ours, theirs in (("scale", "weight"), ("bias", "bias"))
    }
    for ours_norm, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
        table |= {f"{ours_norm}.{a}": (h + f"{theirs}.{b}", None) for a, b in (("scale", "weight"), ("bias", "bias"))}
    for a, b in (("kernel", "weight"), ("bias", "bias")):
        table |= {f"attention.{part}.{a}": (h + f"attn.c_attn.{b}", i) for i, part in enumerate("qkv")}
        table |= {f"attention.out.{a}": (h + f"attn.c_proj.{b}", None)}
        table |= {f"mlp.up.{a}": (h + f"mlp.c_fc.{b}", None), f"mlp.down.{a}": (h + f"mlp.c_proj.{b}", None)}
    return transformers.GPT2LMHeadModel(config), ours, table, False


def llama_like(name: str):
    common = {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": 2, "intermediate_size": MLP, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": name == "qwen3", "head_dim": HEAD,
    }  # fmt: skip
    kind = {"llama": ("LlamaConfig", "LlamaForCausalLM"), "qwen3": ("Qwen3Config", "Qwen3ForCausalLM")}[name]
    theirs = getattr(transformers, kind[1])(getattr(transformers, kind[0])(**common))
    ours = GPTConfig(
        vocab_size=VOCAB, embed_dim=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=2, mlp_dim=MLP, gated=True,
        norm_eps=1e-6, qk_norm=name == "qwen3", tie_embeddings=name == "qwen3", rope_theta=10_000.0,
    )  # fmt: skip
    h = "model.layers.{}."
    table = {"embed.table": ("model.embed_tokens.weight", None), "norm.scale": ("model.norm.weight", None)}
    table |= {"attention_norm.scale": (h + "input_layernorm.weight", None)}
    table |= {"mlp_norm.scale": (h + "post_attention_layernorm.weight", None)}
    table |= {f"attention.{p}.kernel": (h + f"self_attn.{p}_proj.weight", None) for p in "qkv"}
    table |= {"attention.out.kernel": (h + "self_attn.o_proj.weight", None)}
    table |= {f"mlp.{p}.kernel": (h + f"mlp.{p}_proj.weight", None) for p in ("gate", "up", "down")}
    if name == "qwen3":
        table |= {f"attention.{p}_norm.scale": (h + f"self_attn.{p}_norm.weight", None) for p in "qk"}
    else:
        table |= {"head.table": ("lm_head.weight", None)}
    return theirs, ours, table, True


def converted(
    tensors: dict, path: str, name: str, part: int | None, shape: tuple[int, ...], transposed: bool
) -> np.ndarray:
    """Their tensor(s) in our layout: layers stacked, [in, out] kernels split into heads."""

    def one(full_name: str, own: tuple[int, ...]) -> np.ndarray:
        value = tensors[full_name].detach().numpy()
        if path.endswith("kernel") and transposed:
            value = value.T
        if part is not None:
            value = np.split(value, 3, axis=-1)[part]
        return value.reshape(own)

    if "{}" not in name:
        return one(name, shape)
    return np.stack([one(name.format(layer), shape[1:]) for layer in range(LAYERS)])


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_logits_loss_and_gradients(family: str) -> None:
    torch.manual_seed(0)
    theirs, config, table, transposed = gpt2() if family == "gpt2" else llama_like(family)
    for parameter in theirs.parameters():  # not the small, symmetric initial values
        torch.nn.init.normal_(parameter, std=0.2)
    graph, params = params_of(GPT(config, rngs=nnx.Rngs(0)))
    weights = dict(theirs.named_parameters())
    paths, tree = jax.tree.flatten_with_path(params)
    names = [jax.tree_util.keystr(p, simple=True, separator=".").removeprefix("stack.blocks.") for p, _ in paths]
    assert set(names) == set(table)
    leaves = [
        converted(weights, n, *table[n], leaf.shape, transposed) for n, (_, leaf) in zip(names, paths, strict=True)
    ]
    params = tree.unflatten([jnp.asarray(leaf) for leaf in leaves])

    output = theirs(input_ids=torch.tensor(TOKENS), labels=torch.tensor(TOKENS))
    output.loss.backward()

    def loss(params):
        logits = nnx.merge(graph, nnx.State(params))(jnp.asarray(TOKENS))
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), jnp.asarray(TOKENS)[:, 1:, None], axis=-1)
        return -jnp.mean(picked), logits

    (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(logits, output.logits.detach().numpy(), atol=1e-4)
    assert float(value) == pytest.approx(float(output.loss), rel=1e-5)
    theirs_grad = {k: v.grad for k, v in weights.items()}
    for name, gradient in zip(names, jax.tree.leaves(gradients), strict=True):
        expected = converted(theirs_grad, name, *table[name], gradient.shape, transposed)
        np.testing.assert_allclose(gradient, expected, atol=1e-3 * float(np.abs(expected).max()) + 1e-7, err_msg=name)
