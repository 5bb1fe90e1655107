"""What the pods of a job and of a server have in common on Kubernetes."""

import json
import re
from collections.abc import Sequence

from lmkit.config.base import ConfigError
from lmkit.config.sections.launch import LaunchConfig, Shape

SHARED = "/mnt/lmkit"  # where launch.volume is, on every host
FUSE = {"gke-gcsfuse/volumes": "true"}  # the annotation of a pod that mounts a bucket


def check_image(launch: LaunchConfig) -> None:
    """Raises ConfigError where there is no image."""
    if not launch.image:
        raise ConfigError("launch.target=gke needs launch.image=, a container image with lmkit in it")


def pod_values(launch: LaunchConfig, shape: Shape) -> dict[str, str | int | list[str]]:
    """Image, accelerators, where the pod may run, and the shared volume."""
    selector = {"cloud.google.com/gke-spot": "true"} if launch.spot else {}
    if launch.is_tpu:
        selector["cloud.google.com/gke-tpu-accelerator"] = launch.accelerator
        selector["cloud.google.com/gke-tpu-topology"] = launch.topology
    elif launch.accelerator:
        selector["cloud.google.com/gke-accelerator"] = launch.accelerator
    resource = "google.com/tpu" if launch.is_tpu else "nvidia.com/gpu"
    spot = [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    return {
        "node_selector": flow(selector),
        "tolerations": flow(spot if launch.spot else []),
        "resources": flow({"limits": {resource: shape.per_node}} if shape.per_node else {}),
        "image": launch.image,
        "volume": flow(_volume(launch.volume)),
        "volume_mount": flow({"name": "shared", "mountPath": SHARED} if launch.volume else {}),
    }


def executed(command: Sequence[str]) -> list[str]:
    """The lines of a command in the place of the shell: SIGTERM reaches Python."""
    return [f"exec {command[0]}", *(f"  {line}" for line in command[1:])]


def dollars(script: Sequence[str]) -> list[str]:
    """A $ before ( or $ stands twice, for Kubernetes takes one away."""
    return [re.sub(r"\$(?=[$(])", "$$", line) for line in script]


def flow(value: dict | list) -> str:
    """A value as YAML on one line, '' where it is empty."""
    return json.dumps(value) if value else ""


def _volume(volume: str) -> dict:
    if not volume:
        return {}
    if volume.startswith("gs://"):
        attributes = {"bucketName": volume.removeprefix("gs://").strip("/"), "mountOptions": "implicit-dirs"}
        source = {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
    elif ":" in volume:
        server, path = volume.split(":", 1)
        source = {"nfs": {"server": server, "path": path}}
    else:
        source = {"persistentVolumeClaim": {"claimName": volume}}
    return {"name": "shared", **source}
