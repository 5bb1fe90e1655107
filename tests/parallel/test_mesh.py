"""Meshes: sizes, the wildcard, DCN parts, and what is refused."""

import jax
import pytest
from jax.sharding import AxisType

from lmkit.config import ConfigError
from lmkit.config.arithmetic.mesh import AXES, axis_sizes, batch_shards
from lmkit.config.sections.mesh import AxesConfig, MeshConfig
from lmkit.parallel.mesh import build_mesh


def test_every_axis_is_there_and_explicit() -> None:
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"stage": 1, "data": 2, "fsdp": 2, "expert": 1, "context": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Explicit}


@pytest.mark.parametrize(("config", "expected"), [
    (MeshConfig(), {"data": 8}),
    (MeshConfig(data=1, fsdp=-1), {"fsdp": 8}),
    (MeshConfig(data=-1, tensor=2), {"data": 4, "tensor": 2}),
    (MeshConfig(data=2, fsdp=-1, tensor=2), {"data": 2, "fsdp": 2, "tensor": 2}),
    (MeshConfig(data=2, fsdp=2, dcn=AxesConfig(data=2)), {"data": 4, "fsdp": 2}),
])  # fmt: skip
def test_wildcard_takes_what_is_left(config: MeshConfig, expected: dict[str, int]) -> None:
    assert axis_sizes(config, 8) == dict.fromkeys(AXES, 1) | expected


@pytest.mark.parametrize(("config", "words"), [
    (MeshConfig(data=3), ["data=3", "8", "run.cpu_devices=3"]),
    (MeshConfig(data=-1, tensor=3), ["tensor=3", "8"]),
    (MeshConfig(data=4, fsdp=4), ["16", "8"]),
])  # fmt: skip
def test_a_mesh_that_does_not_fit_says_what_would(config: MeshConfig, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        axis_sizes(config, 8)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_dcn_part_is_slice_major() -> None:
    """With 2 slices of 4 devices, neighbours on the inner part of `data` are in one slice."""
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, dcn=AxesConfig(data=2)))
    ids = [[d.id for d in row] for row in mesh.devices.reshape(4, 2)]
    assert ids == [[0, 1], [2, 3], [4, 5], [6, 7]]
    mesh = build_mesh(MeshConfig(data=1, fsdp=4, dcn=AxesConfig(data=2)))
    assert mesh.devices[0, 1].flatten()[0].id == 4


def test_batch_shards() -> None:
    assert batch_shards({"data": 2, "fsdp": 4, "tensor": 2}) == 8


def test_one_device_of_many() -> None:
    assert build_mesh(MeshConfig(), jax.devices()[:1]).size == 1
