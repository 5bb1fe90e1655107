"""Logical dimensions to mesh axes: the only place that knows both.

An *axis* belongs to the mesh, a *dim* to an array. Parameters and contractions name dims; this table says which
axes split them. Axes of size 1 are dropped, so on one device every spec is empty.
"""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmkit.config.base import ConfigError

RULES: Mapping[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
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
}
Dims = Sequence[str | None]
GATHERED: Dims = ("batch", "seq", "width")  # the stream inside a sub-layer, where heads or mlp are split instead


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
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    spec = spec_of(dims, mesh.shape)
    return spec if any(entry is not None for entry in spec) or _splits(mesh.shape) else None


def _splits(sizes: Mapping[str, int]) -> bool:
    return any(n > 1 for n in sizes.values())


def residual_dims(seq_len: int) -> Dims:
    """Dims of the residual stream [B, T, D] between blocks.

    Its sequence is split over `tensor` too (sequence parallelism, Korthikanti et al. 2022, section 4.2.2) where that
    divides its length; an odd length, such as patches and a class token, stays whole on each device of `tensor`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else math.prod(mesh.shape.get(axis, 1) for axis in RULES["seq_norm"])
    return GATHERED if seq_len % parts else ("batch", "seq_norm", "width")


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
