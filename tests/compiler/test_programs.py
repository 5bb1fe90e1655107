"""Programs are compiled with the CPU's best library where there is one, and give the same numbers with it."""

import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny_experiment, train_steps
from lmkit.compiler.programs import has_onednn, has_remat, jit, onednn

NEW = jax.__version_info__ >= (0, 12) and platform.machine() == "x86_64"


def test_it_is_known_which_versions_call_onednn_well() -> None:
    assert has_onednn(bfloat16=False) == NEW
    assert has_onednn(bfloat16=True) == NEW


def test_it_is_known_which_versions_make_unrolled_layers_again() -> None:
    assert has_remat() == (jax.__version_info__ >= (0, 12))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_is_traced_knows_what_it_is_compiled_with(bfloat16: bool) -> None:
    known = []

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        known.append(onednn())
        return a @ b

    x = jnp.ones((64, 64), jnp.bfloat16 if bfloat16 else jnp.float32)
    program = jit(product, "cpu", with_onednn=has_onednn(bfloat16)).lower(x, x).compile()
    assert ("__onednn_fusion" in program.as_text()) == NEW
    assert known == [NEW]
    assert not onednn()
    np.testing.assert_array_equal(np.asarray(program(x, x), np.float32), 64)


def test_other_platforms_are_left_alone() -> None:
    known = []
    program = jit(lambda x: known.append(onednn()) or x, "tpu", static_argnums=())
    program(jnp.ones(2))
    assert known == [False]


def test_options_of_jit_and_the_name_reach_it() -> None:
    def doubled(x: jax.Array, *, times: int) -> jax.Array:
        return x * 2 * times

    program = jit(doubled, "cpu", static_argnames="times", donate_argnums=0)
    assert "jit_doubled" in program.lower(jnp.ones(2), times=3).as_text()[:40]
    x = jnp.ones(2)
    assert float(program(x, times=3)[0]) == 6
    assert x.is_deleted()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        ("float32", 1e-5),  # sums in another order
        ("bfloat16", 1e-3),  # what is rounded differs: a rounding is up to 4e-3, and a thousand tokens even it out
    ],
)
def test_a_model_learns_the_same_with_either_library(dtype: str, tolerance: float) -> None:
    """On jax before 0.12 there is one library, and both runs are the same."""
    experiments = [tiny_experiment(f"model.dtype={dtype}", f"run.cpu_products={one}") for one in ("xla", "onednn")]
    for count in (1, 8):
        one, other = (train_steps(experiment, 4, num_devices=count)[0] for experiment in experiments)
        np.testing.assert_allclose(one, other, rtol=tolerance)
