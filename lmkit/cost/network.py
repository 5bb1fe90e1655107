"""How fast bytes travel along an axis of the mesh.

A collective along an axis is a ring, or several at once. Of GPUs, an axis inside a host has NVLink; one that leaves it
has the network cards of all its members in a host, since each byte need cross between hosts only once. Of TPUs, an axis
lies along one or more sides of the slice; a closed side has two links a chip, an open one counts one; between slices
(mesh.dcn) it is as between hosts.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from lmkit.config.arithmetic.mesh import AXES
from lmkit.config.sections.hardware import HardwareConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.cost.traffic import Least

OVERLAPPED = ("stage", "data", "fsdp", "context")  # what their collectives bring can be asked for ahead of its use


class Network(NamedTuple):
    """What an axis runs over."""

    name: str
    bytes_per_sec: float  # that a device sends; 0 = not known


class Sent(NamedTuple):
    """The bytes of a group of axes in a step."""

    axes: tuple[str, ...]
    network: Network
    sent_bytes: float  # by a device
    seconds: float
    overlapped: bool  # runs beside the products


def network_of(
    hardware: HardwareConfig, mesh: MeshConfig, sizes: dict[str, int], sides: Sequence[int], axis: str
) -> Network:
    """The network of one axis."""
    size, slow, fast = sizes[axis], hardware.dcn_gb_per_sec * 1e9, hardware.link_gb_per_sec * 1e9
    if sides:
        inside = getattr(mesh.dcn, axis)
        chip = (hardware.devices_per_chip,) if hardware.devices_per_chip > 1 else ()  # a chip's devices: a short side
        along = _lies_along(mesh, sizes, (*sides, *chip))[axis]
        links = sum(2 if side % hardware.wraps_from == 0 else 1 for side in along)
        fast *= max(links, 1)
        local = size // inside
    else:
        stride = math.prod(sizes[inner] for inner in AXES[AXES.index(axis) + 1 :])
        local = min(size, max(hardware.devices_per_host // stride, 1))
    if local == size:
        return Network("ICI" if sides else "NVLink", fast)
    return Network("DCN", min(fast, local * slow) if local > 1 else slow)


def _lies_along(mesh: MeshConfig, sizes: dict[str, int], sides: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The sides of a slice that each axis has to itself, inner axes first; () where it has a part of one."""
    left, found = list(sides), {}
    for axis in reversed(AXES):
        size = sizes[axis] // getattr(mesh.dcn, axis)
        fits = (
            chosen
            for count in range(1, len(left) + 1)
            for chosen in itertools.combinations(left, count)
            if math.prod(chosen) == size > 1
        )
        found[axis] = next(fits, ())
        for side in found[axis]:
            left.remove(side)
    return found


def times_of(
    hardware: HardwareConfig, mesh: MeshConfig, sizes: dict[str, int], sides: Sequence[int], least: Sequence[Least],
    share: float,
) -> list[Sent]:  # fmt: skip
    """The time of what must be sent, by axes, and whether it overlaps, largest first; over several axes at the pace of
    the slowest.

    `share`: of a network's bandwidth that is reached.
    """
    sums: dict[tuple[tuple[str, ...], bool], float] = {}
    for row in least:
        key = row.axes, not row.after and all(axis in OVERLAPPED for axis in row.axes)
        sums[key] = sums.get(key, 0.0) + row.sent_bytes
    found = []
    for (axes, overlapped), sent in sums.items():
        networks = [network_of(hardware, mesh, sizes, sides, axis) for axis in axes if sizes[axis] > 1]
        network = min(networks, key=lambda one: one.bytes_per_sec)
        seconds = sent / (network.bytes_per_sec * share) if network.bytes_per_sec else 0.0
        found.append(Sent(axes, network, sent, seconds, overlapped))
    return sorted(found, key=lambda one: -one.seconds)
