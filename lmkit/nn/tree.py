"""Trees of parameters: nested dicts, whose leaves have dotted paths."""

from collections.abc import Collection
from typing import Any

from flax import traverse_util


def flat(tree: Any) -> dict[str, Any]:
    """{"stack.blocks.mlp.up.kernel": leaf, ...}"""
    return dict(traverse_util.flatten_dict(tree, sep="."))


def nested(leaves: dict[str, Any]) -> Any:
    """The inverse of `flat`."""
    return traverse_util.unflatten_dict(leaves, sep=".")


def union(*trees: Any) -> Any:
    """One tree of all leaves; where two have the same, the later one's."""
    return nested({path: leaf for tree in trees for path, leaf in flat(tree).items()})


def divide(tree: Any, paths: Collection[str]) -> tuple[Any, Any]:
    """The leaves at these paths, and the rest."""
    leaves = flat(tree)
    return (
        nested({path: leaf for path, leaf in leaves.items() if path in paths}),
        nested({path: leaf for path, leaf in leaves.items() if path not in paths}),
    )
