"""Muon's direction on a mesh: whole matrices dealt out over devices, orthogonalised there, and dealt back.

Left to the compiler, each of Newton's and Schulz's products of a matrix whose rows or columns are split moves it, 15
times a step; here it moves twice. Matrices of one shape and one split go together, those of all layers and sub-layers,
turned so that a projection up and one down are alike: of n in pieces on g devices (fsdp x tensor) each device takes
ceil(n / g) whole. What does not divide is filled up with zeros.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec
from optax import contrib

from lmkit.config.sections.optim import ParamKind
from lmkit.nn import forms
from lmkit.nn.param import ParamSpec
from lmkit.nn.tree import flat, nested
from lmkit.parallel.rules import on_each_device, spec_of, split_axes


class Pool(NamedTuple):
    """Matrices [rows, columns] that are dealt out together; rows <= columns."""

    rows: int
    columns: int
    axes: tuple[tuple[str, ...], tuple[str, ...]]  # mesh axes that split rows and columns, outermost first
    members: tuple[tuple[str, bool, int], ...]  # path, whether it lies transposed, matrices on a device

    @property
    def count(self) -> int:
        """Matrices of which a device has a piece."""
        return sum(count for *_, count in self.members)


class Exchange(NamedTuple):
    """Over one axis: `count` matrices, of which each device has a piece, for 1 / size of them, of which it has more.

    With one matrix alone each device takes all of it, and computes what the others compute: sending once is enough.
    """

    axis: str
    dim: int  # of [count, rows, columns]: what is put together
    size: int
    before: int  # matrices, without
    count: int  # and with zeros to fill up

    @property
    def alone(self) -> bool:
        return self.count == 1


def pools(specs: Mapping[str, ParamSpec], sizes: Mapping[str, int]) -> list[Pool]:
    """The matrices among parameters, by dotted path, on a mesh with these axis sizes."""
    found: dict[tuple, list[tuple[str, bool, int]]] = {}
    for path, spec in specs.items():
        if spec.kind is not ParamKind.matrix:
            continue
        split = spec.stacked + spec.num_in
        axes = [_axes(entry) for entry in spec_of(spec.dims, sizes)]
        count = math.prod(spec.shape[: spec.stacked]) // math.prod(
            sizes[a] for one in axes[: spec.stacked] for a in one
        )
        sides = [
            (math.prod(spec.shape[a:b]), tuple(axis for one in axes[a:b] for axis in one))
            for a, b in ((spec.stacked, split), (split, len(spec.dims)))
        ]
        # a side of several dims is one only where its outermost alone is split
        assert not any(axes[spec.stacked + 1 : split] + axes[split + 1 :]), spec
        turned = sides[0] > sides[1]
        (rows, of_rows), (columns, of_columns) = sides[::-1] if turned else sides
        found.setdefault((rows, columns, (of_rows, of_columns)), []).append((path, turned, count))
    return [Pool(rows, columns, axes, tuple(members)) for (rows, columns, axes), members in found.items()]


def _axes(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def exchanges(pool: Pool, sizes: Mapping[str, int]) -> list[Exchange]:
    """How its pieces become whole matrices: innermost axes first, so that pieces lie next to each other."""
    steps, count = [], pool.count
    for dim, axes in enumerate(pool.axes, start=1):
        for axis in reversed(axes):
            size = sizes[axis]
            filled = 1 if count == 1 else -(-count // size) * size
            steps.append(Exchange(axis, dim, size, count, filled))
            count = max(1, filled // size)
    return steps


def scale_by_muon(beta: float, specs: Any) -> optax.GradientTransformation:
    """`optax.contrib.scale_by_muon` (Jordan et al. 2024) of the matrices that `specs`, a tree of ParamSpec, describes.

    Every matrix is orthogonalised as what it is, [inputs, outputs]: heads are outputs of q, k, v and inputs of the
    output projection, and layers are a batch. (Optax's default takes 2-D leaves only, which in a scanned stack are
    norms and biases.)
    """
    described = flat(specs)
    numbers = jax.tree.map(_numbers, specs)
    whole = contrib.scale_by_muon(beta=beta, weight_dimension_numbers=numbers)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if not split_axes():
            return whole.update(updates, state, params)
        mu = optax.tree.update_moment(updates, state.mu, beta, 1)
        count = optax.safe_increment(state.count)
        ahead = optax.tree.bias_correction(mu, beta, optax.safe_increment(count))
        now = optax.tree.bias_correction(updates, beta, count)
        nesterov = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, now)
        return _dealt(described, nesterov, state.ns_coeffs), contrib.MuonState(count, mu, state.ns_coeffs)

    return optax.GradientTransformation(whole.init, update)


def _numbers(spec: ParamSpec) -> Any:
    if spec.kind is not ParamKind.matrix:
        return optax.MaskedNode()
    split = spec.stacked + spec.num_in
    return contrib.MuonDimensionNumbers(tuple(range(spec.stacked, split)), tuple(range(split, len(spec.dims))))


def _dealt(specs: Mapping[str, ParamSpec], updates: Any, coefficients: jax.Array) -> Any:
    """All matrices of a tree orthogonalised."""
    sizes, leaves = split_axes(), flat(updates)
    for pool in pools(specs, sizes):
        paths = [path for path, *_ in pool.members]
        layouts = [spec_of(specs[path].dims, sizes) for path in paths]

        run = partial(_orthogonalised, pool, exchanges(pool, sizes))
        run = on_each_device(run, (PartitionSpec(), layouts), layouts, check=False)
        made = run(coefficients, [leaves[path] for path in paths])
        leaves |= dict(zip(paths, made, strict=True))
    return nested(leaves)


def _orthogonalised(
    pool: Pool, steps: list[Exchange], coefficients: jax.Array, pieces: list[jax.Array]
) -> list[jax.Array]:
    """A device's pieces of a pool's matrices, and what is made of them."""
    parts = [math.prod(step.size for step in steps if step.dim == dim) for dim in (1, 2)]
    here = pool.rows // parts[0], pool.columns // parts[1]
    flat_pieces = [
        piece.reshape(count, *here[::-1]).swapaxes(1, 2) if turned else piece.reshape(count, *here)
        for piece, (_, turned, count) in zip(pieces, pool.members, strict=True)
    ]
    x = jnp.concatenate(flat_pieces)
    for step in steps:
        x = jnp.pad(x, [(0, step.count - len(x)), (0, 0), (0, 0)])
        if step.alone:
            x = lax.all_gather(x, step.axis, axis=step.dim, tiled=True)
        else:
            x = lax.all_to_all(forms.exchangeable(x), step.axis, 0, step.dim, tiled=True)
    x = _newton_schulz(x, coefficients)
    for step in reversed(steps):
        if step.alone:
            size = x.shape[step.dim] // step.size
            x = lax.dynamic_slice_in_dim(x, lax.axis_index(step.axis) * size, size, step.dim)
        else:
            x = lax.all_to_all(forms.exchangeable(x), step.axis, step.dim, 0, tiled=True)
        x = x[: step.before]
    ends = [sum(count for *_, count in pool.members[: n + 1]) for n in range(len(pool.members) - 1)]
    return [
        (one.swapaxes(1, 2) if turned else one).reshape(piece.shape)
        for one, piece, (_, turned, _) in zip(jnp.split(x, ends), pieces, pool.members, strict=True)
    ]


def _newton_schulz(x: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Whole matrices [n, rows, columns] by optax's own iterations: its Muon without momentum does nothing else."""
    plain = contrib.scale_by_muon(
        beta=0.0, nesterov=False, weight_dimension_numbers=contrib.MuonDimensionNumbers((1,), (2,))
    )
    first = contrib.MuonState(jnp.zeros((), jnp.int32), jnp.zeros_like(x), coefficients)
    made: Any = plain.update(x, first)[0]
    return made
