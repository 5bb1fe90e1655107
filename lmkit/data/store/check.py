"""Whether a store is what was written, by the CRC-32 of each of its files."""

import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import tensorstore as ts

from lmkit.config.base import ConfigError
from lmkit.data.store.frame import FILES, META, Frame
from lmkit.data.store.places import context, kvstore_of
from lmkit.files import changes, difference


def check_store(place: str, progress: Callable[[str, int, int], None] = lambda *_: None) -> tuple[int, list[str]]:
    """Reads all of a store: how many files it has, and what is wrong with them, a line each.

    Raises ConfigError where there is no finished store.
    """
    frame = Frame(place, 0)
    sums = frame.files()
    whole, done = sum(size for size, _ in sums.values()), 0

    def seen(size: int) -> None:
        nonlocal done
        done += size
        progress("checking", done, whole)

    described = {f"parts/{part['name']}/part.json" for part in frame.meta["parts"]}
    if missing := sorted(described - set(sums)):
        raise ConfigError(f"{place}: {META} tells of parts that {FILES} does not: {', '.join(missing[:3])}")
    if kvstore_of(place)["driver"] == "file":
        return len(sums), changes(Path(place.removeprefix("file://")), sums, seen)
    store = ts.KvStore.open(kvstore_of(place), context=context()).result()
    problems = []
    for name, (size, crc) in sums.items():
        found = store.read(name).result()
        length = len(found.value) if found.state == "value" else None
        problems += difference(name, length, size, partial(zlib.crc32, found.value), crc)
        seen(size)
    return len(sums), problems
