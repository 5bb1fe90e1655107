"""A folder that is there as a whole, or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lmkit.config.base import ConfigError


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write to, which gets that name at the end of the block.

    A process that is killed leaves `<folder>.partial-...`, which the next export to the same place removes. Raises
    ConfigError where the folder exists.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another place or remove it")
    for stale in folder.parent.glob(f"{folder.name}.partial-*"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
