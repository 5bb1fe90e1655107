"""Trees of parameters: nested dicts, whose leaves have dotted paths."""

from collections.abc import Collection
from typing import Any

from flax import traverse_util

from lmkit.config.base import ConfigError


def flat(tree: Any) -> dict[str, Any]:
    """{"stack.blocks.mlp.up.kernel": leaf, ...}. Raises ConfigError for what is no nested dict."""
    if not isinstance(tree, dict):
        raise ConfigError(
            f"a tree of parameters is a {type(tree).__name__}: give a nested dict; of a model it is "
            f"nnx.to_pure_dict(nnx.state(model))"
        )
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


def mismatch(found: dict[str, Any], expected: dict[str, Any], *, extra: bool = True) -> str:
    """How leaves differ from those expected in paths and shapes, in words; "" where they do not.

    Without `extra`, more leaves than expected are no difference.
    """
    missing = [f"{path} {list(leaf.shape)}" for path, leaf in expected.items() if path not in found]
    more = [f"{path} {list(leaf.shape)}" for path, leaf in found.items() if extra and path not in expected]
    other = [
        f"{path} {list(found[path].shape)} instead of {list(leaf.shape)}"
        for path, leaf in expected.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]
    kinds = (("missing", missing), ("extra", more), ("of another shape", other))
    return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds if names)


def _some(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
