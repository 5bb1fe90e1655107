"""The cache: folders that are named by what they are made from, and appear whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmkit.config.base import ConfigError
from lmkit.config.paths import cache_dir
from lmkit.files import beside, locked


def open_cache(configured: str) -> Path:
    """The cache's folder, made where it is missing. Raises ConfigError where it cannot be written."""
    cache = cache_dir(configured)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write the cache {cache}: {error.strerror}; set data.cache_dir= or $LMKIT_CACHE"
        ) from error
    return cache


def place_of(cache: Path, kind: str, made_from: Any) -> Path:
    """Where in the cache something is that was made from this."""
    return cache / kind / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def make_once(path: Path, build: Callable[[Path], object]) -> None:
    """`make_atomically`, once: others that want the same folder wait, where the file system has locks."""
    with locked(path):
        if not path.is_dir():
            make_atomically(path, build)


def make_atomically(path: Path, build: Callable[[Path], object]) -> None:
    """Runs `build` on a folder of this process's own beside `path`, then moves it into place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = beside(path)
    tmp.mkdir()  # not mkdtemp, whose folders nobody else may read: a cache may be shared
    try:
        build(tmp)
        publish(tmp, path)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def publish(tmp: Path, path: Path) -> None:
    """Moves a folder into place in one step; where another process was faster, its folder stays."""
    try:
        os.replace(tmp, path)
    except OSError:
        if not path.is_dir():
            raise
