"""The devices of a TPU slice that is not here: its compiler is, in libtpu, and runs on any CPU."""

import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from lmkit.config.base import ConfigError

KINDS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
# Collective matmul cuts a gather into steps that run beside the product: the same bytes, harder to count.
COUNTABLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
# What libtpu would ask the cloud's metadata for, for minutes, on a machine without a TPU.
_ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost",
          "TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # fmt: skip


def topology_devices(name: str) -> list[Any]:
    """The devices of a slice such as v5e:16x16 or v5p:4x4x8, in libtpu's order. Chips of v4 and tpu7x have two each.

    Set jax up for the CPU first (setup_jax with run.cpu_devices). Raises ConfigError where the name is none, or libtpu
    is missing.
    """
    if not re.fullmatch(rf"({'|'.join(KINDS)}):\d+x\d+(x\d+)?", name):
        raise ConfigError(f"topology {name!r}: it must be one of {', '.join(KINDS)}, and chips, such as v5e:16x16")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"topology {name!r} needs the TPU's compiler, libtpu, which is not installed: pip install 'lmkit[tpu]' "
            f"(on a machine without a TPU set JAX_PLATFORMS=cpu afterwards)"
        )
    if jax.default_backend() != "tpu":
        for key, value in _ALONE.items():
            os.environ.setdefault(key, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # of many types, by version
        raise ConfigError(f"topology {name!r}: libtpu refuses it: {str(error).splitlines()[0]}") from error
