"""Patterns on dotted paths."""

import pytest

from lmkit.config import ConfigError
from lmkit.config.patterns import covers, matching

PATHS = [
    "embed.table",
    "stack.blocks.attention.q.kernel",
    "stack.blocks.attention.q.bias",
    "stack.blocks.mlp.up.kernel",
]


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        ("embed.*", [0]),
        ("embed", [0]),  # a part, by its name
        ("emb", []),
        ("*.attention.q", [1, 2]),
        ("*.kernel", [1, 3]),
        ("stack", [1, 2, 3]),
        ("*", [0, 1, 2, 3]),
    ],
)
def test_covers(pattern: str, hits: list[int]) -> None:
    assert [n for n, path in enumerate(PATHS) if covers(pattern, path)] == hits


def test_the_last_pattern_counts_and_one_that_matches_nothing_is_named() -> None:
    found = matching("optim.rates", ["*", "*.mlp.*"], PATHS)
    assert [found[path] for path in PATHS] == ["*", "*", "*", "*.mlp.*"]
    with pytest.raises(ConfigError, match=r"optim.freeze: 'embd.table' matches nothing; there are embed.table"):
        matching("optim.freeze", ["embed", "embd.table"], PATHS)
