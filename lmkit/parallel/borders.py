"""Functions that run on each device of one mesh axis, and what passes their border stays on its devices.

A shard_map over some Explicit axes gathers all that passes its border over the others, what is kept for its derivative
included (jax 0.10.2 to 0.12.0). So the others are Auto at the border, and Explicit again inside.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmkit.parallel.rules import split_axes

Leaves = list[jax.Array]


def on_each(axis: str, f: Callable, in_specs: Sequence[Any], out_specs: Any, out_sharding: Any) -> Callable:
    """shard_map over one axis of the mesh; over the others its arguments and results stay laid out as they are.

    It has no derivative: see `on_each_with_gradient`.

    Args:
        in_specs: of the arguments, over `axis` alone, as out_specs are of the results; prefixes of trees.
        out_sharding: of the results, over all axes.
    """
    others = tuple(name for name in split_axes() if name != axis)
    if not others:  # all axes, then: kernels that XLA cannot divide ask that none be left
        return jax.shard_map(f, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=False)
    options = {"in_specs": tuple(in_specs), "out_specs": out_specs, "axis_names": {axis}, "check_vma": False}

    def call(*args: Any) -> Any:
        inner = jax.sharding.explicit_axes(f, axes=others, in_sharding=jax.tree.map(partial(_kept, others), args))
        outer = jax.sharding.auto_axes(
            lambda *args: jax.shard_map(inner, **options)(*args), axes=others, out_sharding=out_sharding
        )
        return outer(*args)

    return call


def _kept(axes: Sequence[str], x: jax.Array) -> PartitionSpec:
    """How an array is split over these axes."""
    parts = jax.typeof(x).sharding.spec
    kept = (tuple(name for name in _names(part) if name in axes) for part in parts)
    return PartitionSpec(*[names or None for names in kept])


def _names(part: Any) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else part or ()


def on_each_with_gradient(axis: str, f: Callable, in_specs: Sequence[Any], out_specs: Any) -> Callable:
    """`on_each` with a derivative of its own: what the forward pass keeps stays on the device that made it.

    The function is traced twice, once for the layouts of what it gives and keeps alone.
    """

    def call(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        specs = _leaf_specs(tuple(in_specs), args)
        moves = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

        def merged(moved: Leaves, fixed: Leaves) -> Any:
            sources = {True: iter(moved), False: iter(fixed)}
            return f(*tree.unflatten([next(sources[one]) for one in moves]))

        def chosen(values: Sequence[Any], moving: bool) -> list[Any]:
            return [value for value, one in zip(values, moves, strict=True) if one is moving]

        border = _Border(axis, merged, [chosen(specs, True), chosen(specs, False)], out_specs)
        return border(chosen(leaves, True), chosen(leaves, False))

    return call


class _Border:
    """f(moved, fixed) of a tree of floats and one of anything else, with a derivative for the first."""

    def __init__(self, axis: str, f: Callable, in_specs: list[list[PartitionSpec]], out_specs: Any):
        self.axis, self.f, self.in_specs, self.out_specs = axis, f, in_specs, out_specs
        self.others = tuple(name for name in split_axes() if name != axis)
        self.kept_tree: Any = None  # of what the forward pass keeps, once it has been traced
        call = jax.custom_vjp(self._value)
        call.defvjp(self._forward, self._backward)
        self._call = call

    def __call__(self, moved: Leaves, fixed: Leaves) -> Any:
        return self._call(moved, fixed)

    def _value(self, moved: Leaves, fixed: Leaves) -> Any:
        return self._run(self.f, self.in_specs, self.out_specs, moved, fixed)

    def _forward(self, moved: Leaves, fixed: Leaves) -> Any:
        def local(moved: Leaves, fixed: Leaves) -> Any:
            out, back = jax.vjp(lambda moved: self.f(moved, fixed), moved)
            kept, self.kept_tree = jax.tree.flatten(back)
            return out, [x[None] for x in kept]

        return self._run(local, self.in_specs, (self.out_specs, PartitionSpec(self.axis)), moved, fixed)

    def _backward(self, kept: Leaves, d_out: Any) -> Any:
        specs, shardings = self.in_specs[0], self.shardings

        def local(kept: Leaves, d_out: Any) -> Any:
            (grads,) = jax.tree.unflatten(self.kept_tree, [x[0] for x in kept])(d_out)
            # an argument that all devices of the axis have whole: each has found its own part of the sum
            return [g if any(spec) else jax.lax.psum(g, self.axis) for g, spec in zip(grads, specs, strict=True)]

        run = on_each(self.axis, local, (PartitionSpec(self.axis), self.out_specs), specs, shardings)
        return run(kept, d_out), None

    def _run(self, local: Callable, in_specs: Any, out_specs: Any, moved: Leaves, fixed: Leaves) -> Any:
        """`on_each`, with the layouts of the results from a first trace."""
        self.shardings = [jax.typeof(x).sharding.spec for x in moved]
        found: Any = None

        def recorded(*args: Any) -> Any:
            nonlocal found
            out = local(*args)
            found = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, out)
            return out

        options: dict[str, Any] = {"check_vma": False} | ({"axis_names": {self.axis}} if self.others else {})
        traced = jax.shard_map(recorded, in_specs=tuple(in_specs), out_specs=out_specs, **options)
        out = jax.eval_shape(traced, moved, fixed)
        flat = jax.tree.leaves(found, is_leaf=lambda one: isinstance(one, PartitionSpec))
        flat = [_joined(outer, inner) for outer, inner in zip(_leaf_specs(out_specs, out), flat, strict=True)]
        return on_each(self.axis, local, in_specs, out_specs, jax.tree.structure(out).unflatten(flat))(moved, fixed)


def _joined(outer: PartitionSpec, inner: PartitionSpec) -> PartitionSpec:
    """Of an array whose parts over one axis are split over others inside."""
    size = max(len(outer), len(inner))
    pairs = zip(*((*spec, *[None] * (size - len(spec))) for spec in (outer, inner)), strict=True)
    return PartitionSpec(*[(*_names(a), *_names(b)) or None for a, b in pairs])


def _leaf_specs(specs: Any, tree: Any) -> list[PartitionSpec]:
    """The spec of each leaf, of a tree of specs that is a prefix."""
    is_spec = lambda one: isinstance(one, PartitionSpec)  # noqa: E731
    each = jax.tree.map(lambda spec, part: [spec] * len(jax.tree.leaves(part)), specs, tree, is_leaf=is_spec)
    return jax.tree.leaves(each, is_leaf=is_spec)
