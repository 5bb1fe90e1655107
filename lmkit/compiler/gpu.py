"""How long a GPU's program takes, by what its text says that each kernel reads, writes and multiplies.

A GPU's compiler estimates no cycles. A kernel is taken to last as long as its bytes (operands and results, once) take
at the memory's bandwidth, or its products at the rate that was measured of large ones, whichever is longer, and a
launch. A copy that runs beside other kernels takes their bandwidth, so it counts as if it ran alone. Tiles are chosen
when a program is loaded, and small kernels leave most of a GPU idle: neither is in it.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping

from lmkit.compiler.collectives import Collective, collectives_of
from lmkit.compiler.hlo import Instruction, Program, parse, size_of
from lmkit.compiler.timeline import KERNEL, NETWORK, OTHER, PRODUCT, Price, Timeline, fused, timeline
from lmkit.config.sections.hardware import HardwareConfig

LAUNCH_SEC = 2.5e-6  # from the end of a kernel to the start of the next: assumed, not measured
_FREE = (
    "parameter", "bitcast", "get-tuple-element", "tuple", "constant", "after-all", "partition-id", "replica-id", "iota",
    "opt-barrier", "optimization-barrier", "while", "conditional", "call",
)  # fmt: skip
_CUDNN = re.compile(r"__cudnn\$fmha\w*")
_CUBLAS = re.compile(r"__cublas\$\w+(?:\$\w+)*")


def gpu_timeline(
    text: str, hardware: HardwareConfig, sizes: Mapping[str, int], seconds_of: Callable[[Collective], float]
) -> Timeline:
    """A step of a GPU's program; the arguments are as in compiler/tpu.py."""
    bandwidth, share = hardware.memory_gb_per_sec * 1e9, hardware.matrix_share or 1.0

    def price_of(program: Program, lines: dict[str, Instruction], one: Instruction) -> Price | None:
        if one.kind:
            sent = collectives_of(program, lines, one, sizes)
            alone, label = sum(map(seconds_of, sent)) + LAUNCH_SEC, next((c.kind for c in sent), one.kind)
            return Price(alone, NETWORK, num_bytes=sum(c.sent_bytes for c in sent), label=label, launches=1)
        if one.opcode in _FREE or one.opcode.endswith("-done"):
            return None
        moved = moved_bytes(program, lines, one)
        flops = _flops(program, lines, one)
        rates = {False: hardware.bf16_tflops, True: hardware.fp32_tflops or hardware.bf16_tflops}
        busy = sum(flops[wide] / (rates[wide] * 1e12 * share) for wide in flops if flops[wide])
        kind, label = _kind(program, one)
        seconds = max(moved / bandwidth, busy) + LAUNCH_SEC
        return Price(seconds, kind, sum(flops.values()), moved, label, 1)

    return timeline(parse(text), price_of)


def _kind(program: Program, one: Instruction) -> tuple[str, str]:
    """What a kernel is to the timeline, and by which library or emitter a product or an attention runs."""
    if match := _CUDNN.search(one.text):
        return KERNEL, match[0]
    if match := _CUBLAS.search(one.text):
        return PRODUCT, match[0]
    if not any(inner.opcode == "dot" for inner in fused(program, one)):
        return OTHER, ""
    match = re.search(r'"kind":"(__\w+)"', one.text)
    return PRODUCT, match[1] if match else "XLA's own loop"


def _flops(program: Program, lines: dict[str, Instruction], one: Instruction) -> dict[bool, float]:
    """FLOPs of the products of a kernel, by whether their operands are float32."""
    found = {False: 0.0, True: 0.0}
    if _CUDNN.search(one.text):
        found[False] += _attention_flops(lines, one)
    elif _CUBLAS.search(one.text):
        match = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.text)
        left = lines[one.operands[0]].result[0]
        found[left[0] == "f32"] += _product_flops(one, left[1], match[1] if match else "")
    else:
        for where in _computations(program, lines, one):
            for inner in where.values():
                if inner.opcode == "dot" and (where is not lines or inner is one):
                    match = re.search(r"lhs_contracting_dims=\{([^}]*)\}", inner.text)
                    left = where[inner.operands[0]].result[0]
                    found[left[0] == "f32"] += _product_flops(inner, left[1], match[1] if match else "")
    return found


def _computations(
    program: Program, lines: dict[str, Instruction], one: Instruction
) -> Iterator[dict[str, Instruction]]:
    """The computation that an instruction is in, and those that are fused into it."""
    yield lines
    for inner in fused(program, one):
        for called in inner.called:
            yield program.computations.get(called, {})


def _product_flops(one: Instruction, left: tuple[int, ...], summed: str) -> float:
    """Two for each element of the result and of the dimensions that are summed over."""
    dims = [int(dim) for dim in re.findall(r"\d+", summed)]
    return 2.0 * math.prod(one.result[0][1]) * math.prod(left[dim] for dim in dims)


def _attention_flops(lines: dict[str, Instruction], one: Instruction) -> float:
    """Of cuDNN's attention: two products forward, five backward, each 2 B N T S H; half of it if causal."""
    match = re.search(r'"intermediate_tensor_shape": ?\{"element_type": ?"\w+", ?"dimensions": ?\[([^\]]*)\]', one.text)
    scores = [int(size) for size in re.findall(r"\d+", match[1])] if match else []
    queries = lines[one.operands[0]].result[0][1]
    products = 5 if "Backward" in one.text else 2
    return products * 2.0 * math.prod(scores) * queries[-1] * (0.5 if "CAUSAL" in one.text else 1.0)


def moved_bytes(program: Program, lines: dict[str, Instruction], one: Instruction) -> float:
    """Bytes that a kernel reads and writes: operands and results once.

    Of an array of which a fusion only takes slices, those; one that it updates in place is neither read nor written as
    a whole.
    """
    inner = program.computations.get(one.called[0], {}) if one.opcode.startswith("fusion") and one.called else {}
    params = {int(each.operands[0]): each.name for each in inner.values() if each.opcode == "parameter"}
    written = sum(map(size_of, one.result))
    read = 0.0
    for index, name in enumerate(one.operands):
        if name not in lines:
            continue
        size = sum(map(size_of, lines[name].result))
        users = [each for each in inner.values() if params.get(index) in each.operands]
        if users and all(_slices(each, params[index]) for each in users):
            size = sum(sum(map(size_of, each.result)) for each in users)
        elif users and all(_updates(each, params[index]) for each in users):
            written = max(0.0, written - size)
            written += sum(sum(map(size_of, inner[each.operands[1]].result)) for each in users)
            size = 0.0
        read += size
    return read + written


def _slices(one: Instruction, name: str) -> bool:
    return one.opcode in ("dynamic-slice", "gather", "slice") and one.operands[0] == name


def _updates(one: Instruction, name: str) -> bool:
    return one.opcode == "dynamic-update-slice" and one.operands[0] == name
