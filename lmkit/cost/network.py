"""The time of what a step must send; how fast it travels is in compiler/network.py."""

from collections.abc import Sequence
from typing import NamedTuple

from lmkit.compiler.network import Network, slowest_network
from lmkit.config.sections.hardware import HardwareConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.cost.traffic import Least

OVERLAPPED = ("stage", "data", "fsdp", "context")  # what their collectives bring can be asked for ahead of its use


class Sent(NamedTuple):
    """The bytes of a group of axes in a step."""

    axes: tuple[str, ...]
    network: Network
    sent_bytes: float  # by a device
    seconds: float
    overlapped: bool  # runs beside the products


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
        network = slowest_network(hardware, mesh, sizes, sides, axes)
        seconds = sent / (network.bytes_per_sec * share) if network.bytes_per_sec else 0.0
        found.append(Sent(axes, network, sent, seconds, overlapped))
    return sorted(found, key=lambda one: -one.seconds)
