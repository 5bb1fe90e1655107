"""Sharding repeats no work: with a batch that grows with the devices, each computes what one device computes."""

import jax
import jax.numpy as jnp
import pytest

from lmkit.config.entry import compose
from lmkit.core.setup import lower_step
from lmkit.core.state import make_blueprint
from lmkit.parallel.mesh import build_mesh
from lmkit.parallel.rules import sharding_of


def flops(axis: str, devices: int) -> float:
    """Of a device's compiled step, by the compiler; two rows a device, layers unrolled so that all are counted."""
    words = ["run.name=x", "model=llama3_8b", "model.num_layers=2", "model.embed_dim=64", "model.num_heads=4"]
    words += ["model.num_kv_heads=2", "model.mlp_dim=128", "model.vocab_size=512", "model.scan_layers=false"]
    words += ["model.dtype=float32", "data.seq_len=128", "mesh.data=1", f"mesh.{axis}={devices}"]
    experiment = compose([*words, f"train.batch_size={2 * devices}"])
    mesh = build_mesh(experiment.mesh, jax.devices()[:devices])
    blueprint = make_blueprint(experiment.model, experiment.optim, 10, mesh)
    sharding = sharding_of(("batch", "seq"), mesh)
    dtypes = {"inputs": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    batch = {n: jax.ShapeDtypeStruct((2 * devices, 128), dtype, sharding=sharding) for n, dtype in dtypes.items()}
    return lower_step(experiment, blueprint, batch).compile().cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "most"), [
    ("fsdp", 1.02),
    ("data", 1.05),  # the optimiser runs on every device
])  # fmt: skip
def test_eight_devices_compute_eight_times_what_one_does(axis: str, most: float) -> None:
    assert 0.9 < flops(axis, 8) / flops(axis, 1) < most
