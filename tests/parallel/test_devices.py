"""Which platform a program is for."""

import stat
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from lmkit.config import ConfigError
from lmkit.config.sections.run import RunConfig
from lmkit.files import private_files
from lmkit.parallel.devices import devices_here, platform, share_programs


def test_the_mesh_decides() -> None:
    """A mesh of devices that are not here, as when a step is compiled for a pod."""
    assert platform() == jax.default_backend() == "cpu"
    far = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Explicit,), abstract_device=far)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu"
        seen = []
        jax.jit(lambda x: seen.append(platform()) or x).trace(np.ones(8))
        assert seen == ["tpu"]
    with jax.sharding.use_abstract_mesh(AbstractMesh((8,), ("data",), axis_types=(AxisType.Explicit,))):
        assert platform() == "cpu"


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda': no GPU")])
def test_a_platform_that_is_not_here_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def devices() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ConfigError, match=r"JAX_PLATFORMS=cuda: .*; unset it, or install .* lmkit\[gpu\]"):
        devices_here()


def test_compiled_programs_have_the_modes_of_the_cache(tmp_path: Path) -> None:
    """jax writes them while the umask of the run is in force; others share the cache."""
    run = RunConfig(compile_cache=str(tmp_path))
    with private_files(0o022), private_files(0o077):
        (tmp_path / "program-cache").write_text("")
        share_programs(run)
        share_programs(RunConfig(compile_cache=""))
    assert stat.S_IMODE((tmp_path / "program-cache").stat().st_mode) == 0o644
