"""Which process of a job this is, and which devices are its own, by the configuration or the scheduler."""

import re
import warnings
from collections.abc import Mapping

from lmkit.config.base import ConfigError
from lmkit.config.sections.hosts import HostsConfig, local_process
from lmkit.hosts.line import Process


def find_process(hosts: HostsConfig, env: Mapping[str, str]) -> Process | None:
    """Where this process is among all, by the configuration or the scheduler; None where it is alone.

    Raises ConfigError where there is a scheduler that cannot be asked.
    """
    if (local := local_process()) is not None and hosts.local > 1:
        return Process(f"127.0.0.1:{local[1]}", hosts.local, local[0])
    if hosts.num == 1:
        return None
    nodes = job_nodes(env)
    if hosts.num:
        return Process(hosts.coordinator, hosts.num, hosts.id, nodes)
    found = _ask_scheduler(hosts.coordinator or env.get("JAX_COORDINATOR_ADDRESS", ""))
    return found._replace(nodes=nodes) if found is not None else None


def _ask_scheduler(coordinator: str) -> Process | None:
    """What jax finds of Slurm, Kubernetes, Cloud TPU or Open MPI; None where there is none, or one process."""
    from jax._src.clusters import ClusterEnv  # what jax.distributed asks; it has no public name

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in a pod without the kubernetes package it warns at length
            address, num, number, _ = ClusterEnv.auto_detect_unset_distributed_params(
                coordinator or None, None, None, [0], None, 60
            )
    except Exception as error:
        raise ConfigError(
            f"a scheduler is there, but does not tell which process this is ({error}): give hosts.coordinator, "
            f"hosts.num and hosts.id, or hosts.num=1 for this process alone"
        ) from error
    if num is None or number is None or num == 1:
        return None
    assert address is not None
    return Process(address, num, number)


def job_nodes(env: Mapping[str, str]) -> list[str]:
    """Names of the job's machines, where Slurm or Cloud TPU tells: node[01-03,7] is node01, node02, node03, node7."""
    if names := env.get("TPU_WORKER_HOSTNAMES"):
        return names.split(",")
    nodes = []
    for prefix, ranges, suffix in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?([^,]*)", env.get("SLURM_STEP_NODELIST", "")):
        for one in ranges.split(",") if ranges else [""]:
            first, _, last = one.partition("-")
            numbers = range(int(first), int(last or first) + 1) if first else [None]
            nodes += [prefix + ("" if n is None else str(n).zfill(len(first))) + suffix for n in numbers]
    return nodes


def local_devices(env: Mapping[str, str]) -> list[int] | None:
    """Which of the visible GPUs are this process's; None for all of them.

    All where it is alone on its machine, or the scheduler has shared them out; else an equal share.
    """
    if "JAX_LOCAL_DEVICE_IDS" in env:
        return None  # jax reads it
    if (mine := env.get("SLURM_LOCALID")) is not None:
        counts = []
        for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "1")):
            counts += [int(number)] * int(times or 1)
        tasks = counts[min(int(env.get("SLURM_NODEID", "0")), len(counts) - 1)]
    elif (mine := env.get("OMPI_COMM_WORLD_LOCAL_RANK")) is not None:
        tasks = int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
    else:
        return None
    visible = len([one for one in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if one])
    there = int(env.get("SLURM_GPUS_ON_NODE", "0") or 0) or visible
    if tasks <= 1 or not visible or visible < there or visible == 1:
        return None
    if visible % tasks:
        raise ConfigError(f"{tasks} processes on this machine do not share its {visible} GPUs: start 1, or {visible}")
    share = visible // tasks
    return list(range(int(mine) * share, (int(mine) + 1) * share))
