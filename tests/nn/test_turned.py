"""Matrices turned for decoding on one CPU: the plain product's numbers, the promised bits, no copy of the weights."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import params_of
from lmkit.compiler.programs import FewRows, jit
from lmkit.config.sections.families import EncDecConfig, GPTConfig
from lmkit.config.sections.model import DType, LinearDType
from lmkit.decode import BeamSearch, Decoder, Prompts, Sampling
from lmkit.models import build_model
from lmkit.nn import forms
from lmkit.nn.turned import LANES, Turned, turned_product

LAYERS, INS, OUTS = 3, 96, 80
KEYS = jax.random.split(jax.random.key(0), 2)
MATRICES = jax.random.normal(KEYS[0], (LAYERS, OUTS, INS))
X = jax.random.normal(KEYS[1], (16, INS))
SIZES: dict[str, Any] = {"vocab_size": 96, "num_layers": 2, "num_heads": 4, "embed_dim": 64, "init_std": 0.3}
GPT = GPTConfig(**SIZES, num_kv_heads=2, gated=True, sliding_window=6, global_every=2, tie_embeddings=True)


def product(few: FewRows):
    """Rows by the matrix of layer 1, in a program of that kind."""
    return jit(lambda x, all_LOI: turned_product(x, Turned(all_LOI, (INS, OUTS), jnp.int32(1))), "cpu", few_rows=few)


@pytest.mark.parametrize("few", FewRows)
@pytest.mark.parametrize("rows", [1, 4, 5, 130])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_plain_products_numbers(few: FewRows, rows: int, dtype) -> None:
    x = jnp.resize(X, (rows, INS)).astype(dtype)
    found = product(few)(x, MATRICES)
    wanted = np.asarray(x, np.float64) @ np.asarray(MATRICES[1].astype(dtype), np.float64).T
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("few", "most"), [(FewRows.fast, 4), (FewRows.alike, 16)])
def test_a_rows_bits_do_not_depend_on_the_rows_beside_it(few: FewRows, most: int) -> None:
    run, order = product(few), np.random.default_rng(0).permutation(most)
    whole = np.asarray(run(X[:most], MATRICES))
    for rows in (1, 2, 3, 8)[: most - 1]:
        np.testing.assert_array_equal(run(X[:rows], MATRICES), whole[:rows])
    np.testing.assert_array_equal(run(X[order], MATRICES), whole[order])


def test_alike_holds_for_what_is_not_turned() -> None:
    """A kernel as a checkpoint has it, and the head's table."""
    kernel = MATRICES[0].T

    def both(x):
        return forms.linear(x, kernel, None, 1, None), forms.table_product(x[None], MATRICES[2], None)[0]

    run = jit(both, "cpu", few_rows=FewRows.alike)
    whole = run(X)
    for rows in (1, 2, 3, 8):
        for some, every in zip(run(X[:rows]), whole, strict=True):
            np.testing.assert_array_equal(some, every[:rows])


def test_a_program_without_the_choice_is_the_one_that_it_was() -> None:
    """Training's and the scores' products: neither padded nor turned."""
    text = jax.jit(lambda x: forms.table_product(x[None], MATRICES[2], None)).lower(X[:2]).as_text()
    assert "optimization_barrier" not in text
    assert "tensor<16x96xf32>" not in text


@pytest.mark.parametrize("config", [GPT, EncDecConfig(**SIZES)], ids=["gpt", "encdec"])
def test_prepared_parameters_give_the_same_texts(config) -> None:
    """One row, as many as the loop takes, and more; beams, too; a learned source's encoder runs on them as well."""
    graph, params = params_of(build_model(config, nnx.Rngs(0)))
    merge = lambda params: nnx.merge(graph, nnx.State(params))  # noqa: E731
    decoder = Decoder(merge, config, Sampling())
    ready = decoder.prepared(params)
    kinds = [isinstance(one, Turned) for one in jax.tree.leaves(ready, is_leaf=lambda one: isinstance(one, Turned))]
    assert sum(kinds) >= 7
    for rows in (2, 6):
        prompts = Prompts([[5 + row, 9, 11] for row in range(rows)])
        if isinstance(config, EncDecConfig):
            source = np.random.default_rng(0).integers(0, 96, (rows, 8), dtype=np.int32)
            prompts = Prompts([[1]] * rows, source, np.ones((rows, 8), np.int32))
        found, wanted = (decoder.generate(one, prompts, max_new_tokens=4) for one in (ready, params))
        assert found == wanted
    search = BeamSearch(decoder, 2)
    found, wanted = (search.search(one, prompts, max_new_tokens=4) for one in (ready, params))
    assert [[tokens for tokens, _ in row] for row in found] == [[tokens for tokens, _ in row] for row in wanted]


@pytest.mark.parametrize("scan", [True, False])
def test_a_step_of_one_row_copies_no_weights(scan: bool) -> None:
    """No operation of the compiled step but those that multiply has a matrix's shape, however the layers are run."""
    config = GPTConfig(**SIZES, gated=True, scan_layers=scan)
    graph, params = params_of(build_model(config, nnx.Rngs(0)))
    decoder = Decoder(lambda params: nnx.merge(graph, nnx.State(params)), config, Sampling())
    for prepared, copied in ((True, 0), (False, 1)):
        own = decoder.prepared(params) if prepared else params
        key, batch = jax.random.key(0), decoder.put(Prompts([[5, 9]]), 4)
        _, state = decoder._prefill(own, batch, key, length=20)
        text = decoder._step.lower(own, state, key).compile().as_text()
        assert " while(" in text  # one loop over the layers, also where training has none
        entry = "\n".join(line for line in text.split("\n") if " fusion(" in line or " copy(" in line)
        found = re.findall(r"= f32\[(?:1,)?(?:64,256|256,64|64,64)\]\S* (?:fusion|copy)\(", entry)
        assert bool(found) == bool(copied), found


def test_what_cannot_be_turned_stays() -> None:
    """Sizes that the loop cannot cut, adapters, experts; and float8, whose rounding is another."""
    sizes: dict[str, Any] = SIZES | {"embed_dim": 40}
    small = GPTConfig(**sizes, mlp_dim=LANES)
    mixed = GPTConfig(**SIZES, num_experts=4, experts_per_token=2)
    for config, turned in ((small, {"down"}), (mixed, {"q", "k", "v", "out"})):
        graph, params = params_of(build_model(config, nnx.Rngs(0)))
        decoder = Decoder(lambda params, graph=graph: nnx.merge(graph, nnx.State(params)), config, Sampling())
        leaves = jax.tree_util.tree_leaves_with_path(
            decoder.prepared(params), is_leaf=lambda one: isinstance(one, Turned)
        )
        assert {path[-2].key for path, one in leaves if isinstance(one, Turned)} == turned
    rounded = GPTConfig(**SIZES, linear_dtype=LinearDType.float8, dtype=DType.float32)
    graph, params = params_of(build_model(rounded, nnx.Rngs(0)))
    assert Decoder(lambda params: nnx.merge(graph, nnx.State(params)), rounded, Sampling()).prepared(params) is params
