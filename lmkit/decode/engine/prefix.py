"""Keys and values of the pieces that prompts begin with, kept for the next prompt that begins so."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from lmkit.decode.engine.traced import Text


def chain(tokens: Sequence[int], size: int) -> list[bytes]:
    """A key for each full piece of so many tokens: of its tokens and of all before them."""
    keys, before = [], b""
    for start in range(0, len(tokens) - size + 1, size):
        words = np.asarray(tokens[start : start + size], np.int64).tobytes()
        before = hashlib.sha256(before + words).digest()
        keys.append(before)
    return keys


class Prefixes:
    """Blocks by key, the latest used ones, within `limit` bytes.

    They are of one set of parameters: `clear` it where those change.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._blocks: OrderedDict[bytes, Text] = OrderedDict()

    def find(self, keys: Sequence[bytes]) -> list[Text]:
        """The blocks of the first of these keys, as many in a row as are there."""
        found = []
        for key in keys:
            if key not in self._blocks:
                break
            found.append(self._blocks[key])
        for key in reversed(keys[: len(found)]):  # so that a block leaves before those that it follows
            self._blocks.move_to_end(key)
        return found

    def keep(self, key: bytes, make: Callable[[], Text]) -> None:
        """Adds a block, unless it is there or too large."""
        if key in self._blocks or not self.limit:
            return
        block = make()
        if (size := _bytes(block)) > self.limit:
            self.limit = 0  # all are of one size
            return
        self._blocks[key] = block
        self.bytes += size
        while self.bytes > self.limit:
            self.bytes -= _bytes(self._blocks.popitem(last=False)[1])

    def clear(self) -> None:
        self._blocks.clear()
        self.bytes = 0


def _bytes(block: Text) -> int:
    return sum(array.nbytes for array in block)
