"""How long a TPU's program takes, by the cycles that its own compiler estimates for every fusion and product.

libtpu writes them into the text of the program. Estimated here, as the compiler says nothing of them: Mosaic kernels
by their FLOPs and bytes, copies between memories by their bytes, collectives by their bytes and compiler/network.py.
"""

import math
import re
from collections.abc import Callable, Mapping

from lmkit.compiler.collectives import Collective, collectives_of
from lmkit.compiler.hlo import Instruction, Program, parse, size_of
from lmkit.compiler.timeline import COPY, KERNEL, NETWORK, OTHER, PRODUCT, Price, Timeline, fused, timeline
from lmkit.config.base import ConfigError
from lmkit.config.sections.hardware import HardwareConfig

# Matrix units of a device, and the rows and columns of each. The compiler's cycles for a product of 8,192 cubed, at
# FLOPs / (units * side^2 * 2): v4 (one core) 90 %, v5e 88 %, v5p 90 %, v6e 70 %, v7x 81 % of the peak, so the cycles of
# a v5p are those of both its cores together. Numbers of units: Google Cloud documentation, TPU v4, v5e, v5p; for v6e
# and v7x those that agree with the peak and a clock between 1 and 2.2 GHz.
_UNITS = {"tpu_v4": (8, 128), "tpu_v5e": (4, 128), "tpu_v5p": (8, 128), "tpu_v6e": (4, 256), "tpu_v7x": (4, 256)}
_FREE = (
    "parameter", "bitcast", "get-tuple-element", "tuple", "constant", "after-all", "partition-id", "replica-id",
    "optimization-barrier", "while", "conditional", "call",
)  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "AsyncCollectiveStart")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LAYOUT = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_CHANNEL = re.compile(r"channel_id=\d+")
_FAST = "S(1)"  # of a layout: in the fast memory beside the matrix units
# Products of queries, keys, values and their gradients in each kernel (Dao 2023, algorithms 1 and 2).
_SPLASH = {"fwd": 2, "dq": 3, "dkv": 4}


def clock_hz(hardware: HardwareConfig) -> float:
    """Cycles a second of a TPU: its peak over what its matrix units do in a cycle. Raises ConfigError for others."""
    if hardware.name not in _UNITS:
        raise ConfigError(f"hardware={hardware.name}: no clock is known; there are {', '.join(_UNITS)}")
    units, side = _UNITS[hardware.name]
    return hardware.bf16_tflops * 1e12 / (2 * units * side * side)


def tpu_timeline(
    text: str, hardware: HardwareConfig, sizes: Mapping[str, int], seconds_of: Callable[[Collective], float]
) -> Timeline:
    """A step of a TPU's program.

    Args:
        text: of the compiled program.
        sizes: of the mesh's axes.
        seconds_of: what a collective takes alone, once.
    """
    clock, bandwidth = clock_hz(hardware), hardware.memory_gb_per_sec * 1e9

    def price_of(program: Program, lines: dict[str, Instruction], one: Instruction) -> Price | None:
        if match := _CYCLES.search(one.text):
            product = any(inner.opcode in ("convolution", "dot") for inner in fused(program, one))
            return Price(int(match[1]) / clock, PRODUCT if product else OTHER)
        sent = collectives_of(program, lines, one, sizes)
        starts, ends = _chain(program, one)
        if one.kind or sent or ends:
            moved, label = sum(c.sent_bytes for c in sent), next((c.kind for c in sent), one.kind)
            return Price(sum(map(seconds_of, sent)), NETWORK, 0.0, moved, label, starts=starts, ends=ends)
        if one.opcode in _FREE or any(f'custom_call_target="{name}"' in one.text for name in _FREE_CALLS):
            return None
        if "tpu_custom_call" in one.text:
            flops, moved = splash_flops(lines, one), _moved(lines, one)
            seconds = max(flops / (hardware.bf16_tflops * 1e12), moved / bandwidth)
            return Price(seconds, KERNEL, flops, moved, one.name.rstrip(".0123456789"))
        if one.opcode.endswith("-start"):
            moved = sum(map(size_of, one.result)) * (1 if _FAST in one.type else 2)
            return Price(moved / bandwidth, COPY, num_bytes=moved)
        moved = _moved(lines, one)
        return Price(moved / bandwidth, OTHER, num_bytes=moved)

    return timeline(parse(text), price_of)


def _chain(program: Program, one: Instruction) -> tuple[str, str]:
    """The channel of an asynchronous collective that a fusion begins, and of one that it ends; "" for none."""
    inner = list(fused(program, one)) if one.opcode == "fusion" else []
    channel = next((match[0] for each in inner if each.kind and (match := _CHANNEL.search(each.text))), "")
    begins, ends = (any(f'"AsyncCollective{what}"' in each.text for each in inner) for what in ("Start", "Done"))
    return channel if begins else "", channel if ends else ""


def _moved(lines: dict[str, Instruction], one: Instruction) -> float:
    """Bytes of the operands and the result that lie in the device's large memory."""
    types = [one.type, *(lines[name].type for name in one.operands if name in lines)]
    return sum(
        size_of((dtype, tuple(int(n) for n in dims.split(",") if n)))
        for kind in types for dtype, dims, layout in _LAYOUT.findall(kind) if _FAST not in layout
    )  # fmt: skip


def splash_flops(lines: dict[str, Instruction], one: Instruction) -> float:
    """FLOPs of one of JAX's splash attention kernels, of causal attention; 0 of other kernels.

    Half of the blocks, and those on the diagonal, are computed, each whole. A head narrower than the matrix units
    (128) leaves a part of them idle: it counts as 128.
    """
    match = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", one.name)
    arrays = [lines[name].result[0][1] for name in one.operands if name in lines and lines[name].result]
    if not match or len(arrays) < 5:
        return 0.0
    mask, _, queries, keys = arrays[:4]
    block = max(queries[-2] // mask[-2], 1)
    share = (1 + block / queries[-2]) / 2
    return _SPLASH[match[1]] * 2.0 * math.prod(queries[:-1]) * keys[-2] * max(queries[-1], 128) * share
