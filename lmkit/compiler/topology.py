"""Devices that are not here: the compilers of TPUs (in libtpu) and of GPUs (in jax's CUDA plugin) run on any CPU."""

import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from lmkit.config.base import ConfigError
from lmkit.config.sections.hardware import HardwareConfig

KINDS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
# Collective matmul cuts a gather into steps that run beside the product: the same bytes, harder to count.
COUNTABLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
# What libtpu would ask the cloud's metadata for, for minutes, on a machine without a TPU.
_ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost",
          "TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # fmt: skip


# Compute capability, multiprocessors, MiB of L2 cache, KiB of shared memory of a multiprocessor, GHz (NVIDIA's data
# sheets and CUDA C++ programming guide, table of compute capabilities). The compiler asks for them all.
_GPUS = {
    "a100": ((8, 0), 108, 40, 164, 1.41), "h100": ((9, 0), 132, 50, 228, 1.98), "b200": ((10, 0), 148, 126, 228, 1.965),
}  # fmt: skip
_GPUS |= {"a100_40gb": _GPUS["a100"], "h200": _GPUS["h100"]}


def gpu_capability(hardware: HardwareConfig) -> float:
    """As NVIDIA counts: 8.0 is an A100, 9.0 an H100; 9.0 for what is not in the catalogue."""
    (major, minor), *_ = _GPUS.get(hardware.name, ((9, 0),))
    return major + minor / 10


def hardware_devices(hardware: HardwareConfig, num_slices: int = 1) -> list[Any]:
    """The devices that a plan's hardware stands for. Raises ConfigError where no compiler for them is here."""
    if hardware.platform == "cpu":
        return jax.devices("cpu")[: hardware.devices]
    if hardware.platform == "gpu":
        return gpu_devices(hardware)
    sides = "x".join(map(str, hardware.slice_sides(num_slices)))
    kind = hardware.name.removeprefix("tpu_")
    return topology_devices(f"{'tpu7x' if kind == 'v7x' else kind}:{sides}", num_slices)


def gpu_devices(hardware: HardwareConfig) -> list[Any]:
    """GPUs of the catalogue that are not here. Raises ConfigError as topology_devices does."""
    if hardware.name not in _GPUS:
        raise ConfigError(f"hardware={hardware.name} cannot be compiled for; there are {', '.join(_GPUS)}")
    if importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        raise ConfigError(
            f"hardware={hardware.name} needs the compiler for GPUs, which is not installed: "
            f"pip install 'lmkit[gpu-aot]' (on a machine without a GPU set JAX_PLATFORMS=cpu afterwards)"
        )
    (major, minor), cores, cache, shared, clock = _GPUS[hardware.name]
    inside = min(hardware.devices_per_host, hardware.devices)
    jax.devices()  # registers the plug-ins
    config = f"""
        gpu_device_info {{
            cuda_compute_capability {{ major: {major} minor: {minor} }}
            core_count: {cores} fpus_per_core: {64 if major == 8 else 128} clock_rate_ghz: {clock}
            l2_cache_size: {cache * 2**20} shared_memory_per_core: {shared * 2**10}
            shared_memory_per_block: {48 * 2**10} shared_memory_per_block_optin: {(shared - 1) * 2**10}
            registers_per_core_limit: 65536 registers_per_block_limit: 65536
            threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
            block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
            device_memory_size: {int(hardware.memory_gib * 2**30)}
            memory_bandwidth: {int(hardware.memory_gb_per_sec * 1e9)}
        }}
        runtime_version {{ major: 13 }} dnn_version_info {{ major: 9 minor: 12 }}
        platform_name: "CUDA" device_description_str: "{hardware.device_kinds[0]}"
    """
    name = f"{hardware.name}:1x{hardware.devices // inside}x{inside}"
    try:
        found = topologies.get_topology_desc(name, "cuda", target_config=config, topology=name.split(":")[1])
    except Exception as error:  # of many types, by version
        raise ConfigError(f"hardware={name}: the compiler refuses it: {str(error).splitlines()[0]}") from error
    return list(found.devices)


def topology_devices(name: str, num_slices: int = 1) -> list[Any]:
    """The devices of a slice such as v5e:16x16 or v5p:4x4x8, in libtpu's order. Chips of v4 and tpu7x have two each.

    Set jax up for the CPU first (setup_cpu). Raises ConfigError where the name is none, or libtpu is missing.
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
        more = {"num_slices": num_slices} if num_slices > 1 else {}
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices)
    except Exception as error:  # of many types, by version
        raise ConfigError(f"topology {name!r}: libtpu refuses it: {str(error).splitlines()[0]}") from error
