"""Weights in float8 with the scales that a folder carries beside them, dequantised slice by slice.

A scale is one number, one for each row (output), or one for each block: `weight_scale_inv` of blocks of 128 x 128
(DeepSeek-V3, arXiv 2412.19437, section 3.3.1, and transformers' FP8), `weight_scale` of compressed-tensors and others.
Both names mean a factor.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lmkit.config.base import ConfigError

DTYPES: dict[str, Any] = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
SCALES = ("_scale_inv", "_scale")
# Factors of activations and of the KV cache, which a model that computes in a wider dtype does not need.
UNUSED = (".input_scale", ".activation_scale", ".input_scale_ub", ".k_scale", ".v_scale")
BLOCK = (128, 128)


def blocks_of(name: str, shape: tuple[int, ...], scale: tuple[int, ...], block: Any) -> tuple[int, ...]:
    """Of how many rows and columns each scale is. Raises ConfigError where scales and weights do not fit."""
    if scale in ((), (1,)):
        return shape
    if scale in (shape[:1], (*shape[:1], *[1] * (len(shape) - 1))):
        return (1, *shape[1:])
    fits = isinstance(block, list | tuple) and all(type(each) is int and each > 0 for each in block)
    if fits and len(block) == len(shape) and scale == tuple(map(_blocks, shape, block)):
        return tuple(block)
    raise ConfigError(
        f"{name} {list(shape)} is float8, and its scales {list(scale)} are neither one, nor one a row, nor one a block "
        f"of {block} (quantization_config.weight_block_size): dequantise the folder first"
    )


def _blocks(size: int, each: int) -> int:
    return -(-size // each)


def read_raw(path: Path, name: str, dtype: str) -> np.ndarray:
    """A tensor of a safetensors file, of a dtype that numpy has not, mapped into memory and not read yet."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    begin, end = entry["data_offsets"]
    data = np.memmap(path, np.uint8, "r", 8 + size + begin, (end - begin,)) if end > begin else np.empty(0, np.uint8)
    return data.view(DTYPES[dtype]).reshape(entry["shape"])


def dequantised(
    weight: np.ndarray, ranges: Sequence[tuple[int, int]], scale: np.ndarray, block: tuple[int, ...]
) -> np.ndarray:
    """float32: the part `ranges` of a weight times its scales, each of which is of a block of it."""
    part = weight[tuple(slice(*one) for one in ranges)].astype(np.float32)
    grid = scale.astype(np.float32).reshape(tuple(map(_blocks, weight.shape, block)))
    places = [np.arange(first, last) // each for (first, last), each in zip(ranges, block, strict=True)]
    return part * grid[np.ix_(*places)]
