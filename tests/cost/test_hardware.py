"""The catalogue, and the floating-point operations that MFU is counted in."""

import jax.numpy as jnp
import pytest

from lmkit.config import ConfigError
from lmkit.config.sections.hardware import HardwareConfig, known_hardware
from lmkit.cost.hardware import check_fits, peak_flops


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100_40gb"),  # more exactly than "NVIDIA A100"
        ("NVIDIA B200", "b200"),
        ("TPU7x", "tpu_v7x"),
        ("TPU v5 lite", "tpu_v5e"),
        ("TPU v5", "tpu_v5p"),
        ("TPU v6 lite", "tpu_v6e"),
        ("TPU v4", "tpu_v4"),
    ],
)
def test_devices_are_recognised(kind: str, name: str) -> None:
    found = known_hardware(HardwareConfig(), kind)
    assert found is not None
    assert found.name == name


def test_unknown_devices_have_no_peak() -> None:
    assert known_hardware(HardwareConfig(), "cpu") is None
    assert peak_flops(None, jnp.dtype(jnp.bfloat16)) == 0.0


def test_a_step_that_does_not_fit_is_refused() -> None:
    h100 = known_hardware(HardwareConfig(), "NVIDIA H100")
    check_fits(h100, 79 * 2**30)
    with pytest.raises(ConfigError, match=r"90.0 GiB.*h100 has 80.*mesh.fsdp"):
        check_fits(h100, 90 * 2**30)
