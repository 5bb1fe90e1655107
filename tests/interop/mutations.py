"""Files with one mistake each: bytes cut or flipped, keys of JSON dropped or of another type."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_OTHERS: list[Any] = [None, "x", "1", -1, 0, 1.5, 10**12, True, [], [1, 2], {}, {"a": 1}]


def mutations(file: Path, count: int, seed: int) -> Iterator[bytes]:
    """So many damaged contents of a file; of a .json half of them are JSON still."""
    rng, content = random.Random(f"{file.name} {seed}"), file.read_bytes()
    for number in range(count):
        if file.suffix == ".json" and number % 2:
            yield json.dumps(_mutated(json.loads(content), rng)).encode()
            continue
        kind, at = rng.randrange(3), rng.randrange(min(len(content), 2_000))
        if kind == 0:
            yield content[:at]
        elif kind == 1:
            yield content[:at] + content[at + rng.randrange(1, 9) :]
        else:
            yield content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def _mutated(value: Any, rng: random.Random) -> Any:
    """The same with a key dropped, or one value somewhere of another type."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(_OTHERS)
    place = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    value = value.copy()
    if rng.random() < 0.3:
        del value[place]
    else:
        value[place] = _mutated(value[place], rng)
    return value
