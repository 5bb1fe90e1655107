"""How long a step of a compiled program takes on devices that need not be here, by the text of the program."""

from lmkit.compiler.collectives import Collective
from lmkit.compiler.gpu import gpu_timeline
from lmkit.compiler.network import slowest_network
from lmkit.compiler.timeline import Timeline
from lmkit.compiler.tpu import tpu_timeline
from lmkit.config.arithmetic.mesh import AXES
from lmkit.config.sections.hardware import HardwareConfig
from lmkit.config.sections.mesh import MeshConfig

ERROR = {  # what is known of it
    "tpu": "cycles are what the TPU's compiler estimates of each fusion and product; kernels are counted by FLOPs and "
    "bytes at the peak, collectives by the bandwidth of the network, without latency. Never compared with a measured "
    "step: good for comparing programs, and as a time probably too short",
    "gpu": "each kernel takes its bytes at the memory's bandwidth, or its FLOPs at the rate measured of large "
    "products, and a launch. Never compared with a measured step: what good kernels could reach, so too short",
}


def step_timeline(
    text: str, hardware: HardwareConfig, mesh: MeshConfig, sizes: dict[str, int], network_share: float
) -> Timeline:
    """A step of the program.

    Args:
        text: `as_text()` of a program that was compiled for this TPU or GPU.
        mesh: for its slices (mesh.dcn).
        sizes: of the axes of the mesh; axes that are not named have one device.
        network_share: of a network's bandwidth that is reached.

    Raises ConfigError for a TPU whose clock is not known.
    """
    sizes = {axis: sizes.get(axis, 1) for axis in AXES}
    sides = hardware.slice_sides(mesh.num_slices)

    def seconds_of(one: Collective) -> float:
        rate = slowest_network(hardware, mesh, sizes, sides, one.axes).bytes_per_sec if one.axes else 0.0
        return one.sent_bytes / (rate * network_share) if rate else 0.0

    read = tpu_timeline if hardware.platform == "tpu" else gpu_timeline
    return read(text, hardware, sizes, seconds_of)
