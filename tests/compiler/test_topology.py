"""Slices that are not here. What they compile to is tested in tests/verify/test_topology.py."""

import importlib.util

import pytest

from lmkit.compiler.topology import topology_devices
from lmkit.config import ConfigError


@pytest.mark.parametrize("name", ["v5e", "v5litepod-16", "v9:2x2", "v5e:4", "h100:1x2x8"])
def test_a_name_that_is_none_says_what_is_one(name: str) -> None:
    with pytest.raises(ConfigError, match=r"v4, v5e, v5p, v6e, tpu7x, .* such as v5e:16x16"):
        topology_devices(name)


def test_without_libtpu_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    with pytest.raises(ConfigError, match=r"pip install 'lmkit\[tpu\]'"):
        topology_devices("v5e:4x4")


def test_devices_of_a_slice() -> None:
    pytest.importorskip("libtpu", reason="LOUD: libtpu is not installed (pip install 'lmkit[tpu]')")
    devices = topology_devices("v5e:4x4")
    assert len(devices) == 16
    assert {device.platform for device in devices} == {"tpu"}
    with pytest.raises(ConfigError, match="3x5.*libtpu refuses it: .*not divisible"):
        topology_devices("v5e:3x5")
