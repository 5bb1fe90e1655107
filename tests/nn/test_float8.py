"""Float8 linear layers: the numbers, the same on every mesh, and what is multiplied and sent."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from helpers import MESHES, random_batch, rotated, tiny_experiment, train_steps
from lmkit.config import ConfigError
from lmkit.core.setup import lower_step, setup_mesh
from lmkit.core.state import make_blueprint
from lmkit.nn.float8 import float8_product
from lmkit.parallel.mesh import build_mesh

ON = "model.linear_dtype=float8"
E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


def rounded(x: np.ndarray, dtype: type) -> np.ndarray:
    scale = np.abs(x).max() / np.float32(ml_dtypes.finfo(dtype).max)
    return (x / scale).astype(dtype).astype(np.float32) * scale


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_the_rounded_operands(dtype) -> None:
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8, 3, 5), (3, 5, 4, 6), (2, 8, 4, 6)))
    x, kernel, d = (np.array(jnp.asarray(one, dtype), np.float32) for one in arrays)  # what dtype can hold
    x[0, 0] *= 100  # one scale for all of it: the rest loses digits
    y, back = jax.vjp(lambda x, w: float8_product(x, w, 2, None), jnp.asarray(x, dtype), jnp.asarray(kernel))
    d_x, d_kernel = back(jnp.asarray(d, dtype))
    x8, kernel8, d8 = rounded(x, E4M3), rounded(kernel, E4M3), rounded(d, E5M2)
    wanted = (
        np.einsum("ntab,abxy->ntxy", x8, kernel8), np.einsum("ntxy,abxy->ntab", d8, kernel8),
        np.einsum("ntab,ntxy->abxy", x8, d8),
    )  # fmt: skip
    assert [one.dtype for one in (y, d_x, d_kernel)] == [dtype, dtype, jnp.float32]
    for got, expected in zip((y, d_x, d_kernel), wanted, strict=True):
        error = np.linalg.norm(np.asarray(got, np.float32) - expected) / np.linalg.norm(expected)
        assert error < (1e-5 if dtype == jnp.float32 else 6e-3)  # bfloat16: the scale and the result are rounded


def test_zeros_and_large_numbers_stay_finite() -> None:
    x, kernel = jnp.zeros((4, 8), jnp.bfloat16), jnp.full((8, 4), 1e30)
    assert not jnp.any(float8_product(x, kernel, 1, None))
    y = float8_product(x + 1, kernel, 1, None)
    np.testing.assert_allclose(np.asarray(y, np.float32), 8e30, rtol=0.01)


@pytest.fixture(scope="module")
def one_device() -> list[float]:
    return train_steps(tiny_experiment(ON), 6, num_devices=1)[0]


@pytest.mark.parametrize("keys", rotated(
    [MESHES["fsdp8"], MESHES["data2_fsdp2_tensor2"], ["mesh.data=2", "mesh.context=4"]], MESHES["data2_fsdp2_tensor2"]
))  # fmt: skip
def test_losses_are_the_same_on_every_mesh(keys: list[str], one_device: list[float]) -> None:
    """The scale is that of the whole array. A sum in another order may round to the next number, so not to the bit."""
    losses, _, _ = train_steps(tiny_experiment(ON, *keys), 6)
    assert losses[0] == pytest.approx(one_device[0], rel=1e-6)
    np.testing.assert_allclose(losses, one_device, rtol=5e-4)


def test_it_learns_as_float32_does(one_device: list[float]) -> None:
    plain, _, _ = train_steps(tiny_experiment(), 6, num_devices=1)
    np.testing.assert_allclose(one_device, plain, rtol=2e-3)
    assert one_device != plain


def test_in_a_pipeline_each_micro_batch_has_a_scale_of_its_own(one_device: list[float]) -> None:
    losses, _, _ = train_steps(tiny_experiment(ON, "mesh.data=2", "mesh.fsdp=2", "mesh.stage=2"), 6)
    np.testing.assert_allclose(losses, one_device, rtol=2e-3)


def products(*keys: str) -> list[tuple[str, str]]:
    """The dtypes of the operands of every product of a step."""
    experiment = tiny_experiment(ON, "model.gated=true", "model.scan_layers=false", *keys)
    mesh = build_mesh(experiment.mesh, jax.devices()[:1])
    blueprint = make_blueprint(experiment.model, experiment.optim, 10, mesh)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), random_batch(0))
    text = lower_step(experiment, blueprint, batch).as_text()
    return re.findall(r"dot_general.*: \(tensor<[\dx]*(\w+)>, tensor<[\dx]*(\w+)>\) ->", text)


def test_every_product_of_a_linear_layer_has_float8_operands_and_no_other() -> None:
    """q, k, v, the output, gate, up and down of each layer; the gradients of their inputs and of their kernels."""
    kinds = products("model.remat=none")
    layers = tiny_experiment().model.num_layers
    wanted = {("f8E4M3FN", "f8E4M3FN"): 7, ("f8E5M2", "f8E4M3FN"): 7, ("f8E4M3FN", "f8E5M2"): 7}
    assert {kind: kinds.count(kind) for kind in set(kinds) if "f8" in str(kind)} == {
        kind: count * layers for kind, count in wanted.items()
    }
    assert ("f32", "f32") in kinds  # attention's, the head's


def test_experts_and_their_router_stay_as_they_are() -> None:
    kinds = products("model.num_experts=4", "model.experts_per_token=2", "model.remat=none")
    assert kinds.count(("f8E4M3FN", "f8E4M3FN")) == 4 * tiny_experiment().model.num_layers


def test_without_its_library_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "qwix" else found(name))
    with pytest.raises(ConfigError, match=r"linear_dtype=float8 needs qwix: pip install 'lmkit\[float8\]'"):
        setup_mesh(tiny_experiment(ON))
