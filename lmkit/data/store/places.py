"""Where a store lies: a folder or an object store, as TensorStore takes it; which of its files are there."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import tensorstore as ts

from lmkit.config.base import ConfigError

_DRIVERS = {"s3": "s3", "gs": "gcs"}
# An object store that fails is asked again, later and later: about two minutes in all, then it is named.
RETRIES = {"max_retries": 9, "initial_delay": "500ms", "max_delay": "30s"}

_found: dict[str, list[str]] = {}  # place -> files that were missing when this process listed it
_told: dict[str, list[str]] = {}  # the same of another process, each for one opening


def context(cache_bytes: int = 0) -> ts.Context:
    """A cache of decoded chunks, and how often what fails is asked again."""
    retries = {f"{name}_request_retries": RETRIES for name in ("s3", "gcs", "http")}
    return ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}, **retries})


def kvstore_of(place: str) -> dict[str, Any]:
    """TensorStore's description of a folder or an object store.

    An S3 of one's own is named as for Amazon's tools: AWS_ENDPOINT_URL, AWS_REGION. Raises ConfigError for another
    scheme.
    """
    scheme, rest = place.split("://", 1) if "://" in place else ("", place)  # a path may hold any of ":?#"
    host, _, path = rest.partition("/")
    path = path.strip("/") + "/"
    if not scheme or scheme == "file":
        return {"driver": "file", "path": f"/{path}" if scheme else place.rstrip("/") + "/"}
    if scheme in ("http", "https"):
        return {"driver": "http", "base_url": f"{scheme}://{host}", "path": f"/{path}"}
    if scheme not in _DRIVERS:
        raise ConfigError(f"{place}: a store is read from a folder, s3://, gs:// or http(s)://, not {scheme}://")
    found = {"driver": _DRIVERS[scheme], "bucket": host, "path": path}
    if scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            found |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
        elif region:
            found["aws_region"] = region
    return found


def missing_files(place: str, files: Callable[[], Iterable[str]], context: ts.Context) -> list[str]:
    """Which of a store's `files` are gone, sorted, as another process told, else by a list of all. HTTP cannot list."""
    if place in _told:
        return _told.pop(place)
    if kvstore_of(place)["driver"] == "http":
        return []
    store = ts.KvStore.open(kvstore_of(place), context=context).result()
    _found[place] = sorted(set(files()) - {name.decode() for name in store.list().result()})
    return _found[place]


def tell_missing() -> str:
    """What this process has found missing, by store: for `hear_missing` of processes that open the same stores next."""
    found = json.dumps(_found)
    _found.clear()
    return found


def hear_missing(told: str) -> None:
    """Takes what another process found, so that each of its stores opens here without a list of its files, once."""
    _told.clear()
    _told.update(json.loads(told))
