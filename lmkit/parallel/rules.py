"""Logical dimensions to mesh axes: the only place that knows both.

An *axis* belongs to the mesh, a *dim* to an array. Parameters and contractions name dims; this table says which
axes split them. Axes of size 1 are dropped, so on one device every spec is empty.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmkit.config.arithmetic.mesh import BATCH_AXES
from lmkit.config.arithmetic.pipeline import STAGE
from lmkit.config.base import ConfigError

RULES: Mapping[str, tuple[str, ...]] = {
    # activations
    "batch": BATCH_AXES,
    "seq": ("context",),
    "seq_norm": ("context", "tensor"),  # the residual stream and its norms: sequence parallelism
    "width": (),  # the residual stream's embed dim
    # parameters; heads, kv_heads, mlp and vocab are activation dims too
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "position": (),
    "norm": (),
    "expert": ("expert",),
    "feature": (),  # what an image patch, an audio frame, a class or a projection is made of
    "lora": (),  # the rank of an adapter
    "layers": ("stage",),
    "layer": (),  # of a stack of one
}
DATA = "data"  # the axis whose devices have the same parameters, and differ in their rows alone
Dims = Sequence[str | None]
WHOLE: Dims = ("batch", None, "width")  # each device has its rows whole


def spec_of(dims: Dims, sizes: Mapping[str, int]) -> PartitionSpec:
    """The partition spec of an array with these dims on a mesh with these axis sizes.

    Raises ConfigError for an unknown dim, and where two dims of one array want the same axis.
    """
    taken: dict[str, str] = {}
    entries: list[tuple[str, ...] | str | None] = []
    for dim in dims:
        if dim is None:
            entries.append(None)
            continue
        if dim not in RULES:
            raise ConfigError(f"no sharding rule for dim {dim!r}; there are {', '.join(RULES)}")
        axes = tuple(axis for axis in RULES[dim] if sizes.get(axis, 1) > 1)
        for axis in axes:
            if axis in taken:
                raise ConfigError(f"dims {taken[axis]!r} and {dim!r} of one array both want mesh axis {axis!r}")
            taken[axis] = dim
        entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*entries)


def current_spec(dims: Dims) -> PartitionSpec | None:
    """The spec on the mesh of the context (`jax.set_mesh`); None where there is no mesh or nothing is split."""
    sizes = split_axes()
    return spec_of(dims, sizes) if sizes else None


def split_axes() -> dict[str, int]:
    """Axes of the context's mesh that split something here, with their sizes: those above 1 that are not Manual."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {axis: size for axis, size, kind in kinds if size > 1 and kind is not AxisType.Manual}


def in_pipeline() -> bool:
    """Whether this is one stage's work, where the other axes alone are laid out by rules."""
    return _is_manual(STAGE)


def _is_manual(axis: str) -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(name == axis and size > 1 and kind is AxisType.Manual for name, size, kind in kinds)


def sums_late(sizes: Mapping[str, int], micro: int) -> bool:
    """Whether gradients of so many micro-batches are reduced over `data` once, after the last (core/step.py).

    Not beside a pipeline: its rows are split over stages first, and it has micro-batches of its own.
    """
    return micro > 1 and sizes.get(DATA, 1) > 1 and sizes.get(STAGE, 1) == 1


def over_data(sums: Any) -> Any:
    """Sums over the rows here as sums over those of all devices: they are, but where each device has its own rows."""
    return jax.lax.psum(sums, DATA) if _is_manual(DATA) else sums


def row_numbers(rows: int) -> jax.Array:
    """int [B]: the numbers in the batch of the rows here, laid out over it."""
    first = jax.lax.axis_index(DATA) * rows if _is_manual(DATA) else 0
    return reshard(first + jnp.arange(rows), ("batch",))


def on_each_device(f: Callable, in_specs: Any, out_specs: Any, *, check: bool = True) -> Callable:
    """shard_map over the axes that are not Manual already: inside a pipeline, over those of a stage.

    There nothing is checked: what a checked shard_map keeps for its backward pass would be laid out over all axes that
    it varies over, those of the outer one too (jax 0.10.2 to 0.12.0).
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind is not AxisType.Manual}
    if not free:  # each device is alone already
        return f
    check &= len(free) == len(mesh.axis_names)
    return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, axis_names=free, check_vma=check)


def seq_dim(seq_len: int) -> str | None:
    """The dim of so many places inside a sub-layer: "seq", or None where `context` does not divide them.

    None is for what is short anyway: a pooled token, the picked places. Whole sequences are checked beforehand.
    """
    return None if seq_len % math.prod(split_axes().get(axis, 1) for axis in RULES["seq"]) else "seq"


def gathered_dims(seq_len: int) -> Dims:
    """Dims of the stream [B, T, D] inside a sub-layer, where heads or mlp are split over `tensor` instead."""
    return ("batch", seq_dim(seq_len), "width")


def residual_dims(seq_len: int) -> Dims:
    """Dims of the residual stream [B, T, D] between blocks.

    Its sequence is split over `tensor` too (sequence parallelism, Korthikanti et al. 2022, section 4.2.2) where that
    divides its length; an odd length, such as patches and a class token, stays whole on each device of `tensor`.
    """
    parts = math.prod(split_axes().get(axis, 1) for axis in RULES["seq_norm"])
    return gathered_dims(seq_len) if seq_len % parts else ("batch", "seq_norm", "width")


def reshard(x: jax.Array, dims: Dims) -> jax.Array:
    """Moves an activation to the layout of `dims`; nothing without a mesh.

    Never call it on a weight: the transpose of a gather reduces the whole gradient (see docs/sharding.md).
    """
    spec = current_spec(dims)
    return x if spec is None else jax.sharding.reshard(x, spec)


def sharding_of(dims: Dims, mesh: Mesh, shape: Sequence[int] = (), name: str = "") -> NamedSharding:
    """The sharding of an array on a mesh. With a shape, raises ConfigError where an axis does not divide a dim."""
    spec = spec_of(dims, mesh.shape)
    for dim, size, entry in zip(dims, shape, spec, strict=bool(shape)) if shape else ():
        axes = (entry,) if isinstance(entry, str) else entry or ()
        parts = 1
        for axis in axes:
            parts *= mesh.shape[axis]
        if size % parts:
            raise ConfigError(
                f"{name or 'an array'}: dim {dim!r} of size {size} is not divisible by "
                f"mesh {' x '.join(axes)} = {parts}; "
                f"nearest that fit are {size // parts * parts} and {(size // parts + 1) * parts}"
            )
    return NamedSharding(mesh, spec)


def put_rows(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process has whole, on the devices: each gets its own part."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
